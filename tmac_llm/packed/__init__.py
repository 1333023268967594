"""The packed model, written once by convert and read by every run; knows no checkpoint and no arithmetic.

tiles.py      bytes of one matrix              names.py   which matrices and vectors a model consists of
container.py  the directory, seen as a model   files.py   its manifest, JSON and tensor files, checked
writer.py     the directory, written
"""
