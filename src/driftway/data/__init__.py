"""Data that carries its answer, and data from files."""

from driftway.data.columns import Columns, read_columns
from driftway.data.digits import digits
from driftway.data.encoding import Encoding, encoding_of
from driftway.data.images import ImageSet, read_images
from driftway.data.labels import Labelled, read_labelled
from driftway.data.laws import PAIRS, Law, eight_gaussians, moons, s_curve, standard_normal
from driftway.data.readers import Table, read_table
from driftway.data.texts import Texts, read_texts
from driftway.data.writers import writable, write_table

__all__ = [
    "PAIRS",
    "Columns",
    "Encoding",
    "ImageSet",
    "Labelled",
    "Law",
    "Table",
    "Texts",
    "digits",
    "eight_gaussians",
    "encoding_of",
    "moons",
    "read_columns",
    "read_images",
    "read_labelled",
    "read_table",
    "read_texts",
    "s_curve",
    "standard_normal",
    "writable",
    "write_table",
]
