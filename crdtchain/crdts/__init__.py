"""Small convergent data types that know nothing of ops: each file is one, with its laws."""
