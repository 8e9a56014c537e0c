"""The program that people run: a peer node, its worker and its command line."""
