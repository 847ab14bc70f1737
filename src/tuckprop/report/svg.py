"""A figure as SVG that stands inside an HTML page: no prolog, no link, no style sheet, no id twice."""

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from tuckprop.report.style import COLOURS

# An id in an attribute's value, such as `clip-path="url(#id)"`; an `href` is one as a whole.
_URL = re.compile(r"(?<=url\(#)[^)]+")
_COLOUR = re.compile(f"#({'|'.join(colour[1:].lower() for colour in COLOURS)})")
# XML 1.0 cannot hold these, not even escaped; matplotlib writes a figure's texts, whatever they are, in comments.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an element for a page.

    Texts are outlines: they look the same on every machine and need no font. Black becomes the page's text colour, the
    page may replace the other colours (`--ink-0072b2`), and nothing is drawn behind: the figure suits light and dark
    pages. Its width is the page's to choose.

    Args:
        figure: As `tuckprop.report.plot` returns it.
        name: Put before each id; another one for each figure of a page.
        label: What the figure shows, for those who cannot see it.

    Returns:
        An `<svg>` element without namespaces, as HTML has it.
    """
    file = io.StringIO()
    # All four None leave the metadata away, which would link to vocabularies; the salt makes ids the same each time.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    # The parser drops prolog, DOCTYPE and comments.
    root = ElementTree.fromstring(_NOT_XML.sub("", file.getvalue()))
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        _clean(element, name, used)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    # matplotlib leaves the fill away where it is black.
    root.attrib |= {"role": "img", "aria-label": label, "fill": "currentColor"}
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    """Return the ids that an element refers to."""
    links = [value.removeprefix("#") for key, value in element.items() if _local(key) == "href"]
    return links + [reference for value in element.attrib.values() for reference in _URL.findall(value)]


def _clean(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Take namespaces, style sheets and idle ids from an element, and make its other ids the figure's own."""
    element.tag = _local(element.tag)
    for sheet in [child for child in element if _local(child.tag) == "style"]:
        element.remove(sheet)
    for key, value in list(element.items()):
        del element.attrib[key]
        if key == "id" and value not in used:
            continue
        if key == "id":
            value = f"{name}-{value}"
        elif _local(key) == "href":
            value = f"#{name}-{value.removeprefix('#')}"
        else:
            value = _COLOUR.sub(_of_page, _URL.sub(lambda found: f"{name}-{found[0]}", value))
        element.set(_local(key), value)


def _of_page(colour: re.Match[str]) -> str:
    """Let the page choose a colour: black is that of its text, another has a property such as `--ink-0072b2`."""
    return "currentColor" if colour[1] == "000000" else f"var(--ink-{colour[1]}, {colour[0]})"


def _local(name: str) -> str:
    """Return a tag or an attribute without its namespace."""
    return name.rpartition("}")[2]
