"""Tensor maths on plain tensors: no modules, no autograd."""
