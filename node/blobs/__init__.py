"""Blobs by their CIDs: files in the data folder, checked on the way in, pulled from peers when somebody needs them."""

from node.blobs.lists import decode_chunk_list, encode_chunk_list
from node.blobs.store import Blobs

__all__ = ["Blobs", "decode_chunk_list", "encode_chunk_list"]
