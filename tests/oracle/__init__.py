"""A second, slow and obvious implementation of the protocol's rules, to compare the core with.

It shares no code with the package: sections 3 to 7 are written down again over plain sets and dicts.
"""

from tests.oracle.model import OracleOp
from tests.oracle.rules import Oracle

__all__ = ["Oracle", "OracleOp"]
