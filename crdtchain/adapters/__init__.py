"""The only files of the library that touch the outside: stores, keys, files."""
