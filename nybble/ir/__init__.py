"""The vocabulary that every room speaks: ops, their NumPy law, and the spec of each stage.

TVM's ffi imports torch whenever it is installed, which costs seconds and 200 MB. The rooms import
this package first, so TVM arrives here, with torch hidden unless the user already loaded it.
"""

from nybble.torchless import without_torch

with without_torch():
    import tvm as tvm
