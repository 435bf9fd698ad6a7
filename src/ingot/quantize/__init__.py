"""Lower precision: ranges gathered from data, and integers put into the graph, as data."""
from ingot.quantize.observe import Observer
from ingot.quantize.ranges import METHODS, Range, chosen
from ingot.quantize.scales import Calibration, TensorRange, calibrate, read_calibration, write_calibration
from ingot.quantize.sites import QuantSite, quantisable

__all__ = ["METHODS", "Calibration", "Observer", "QuantSite", "Range", "TensorRange", "calibrate", "chosen",
           "quantisable", "read_calibration", "write_calibration"]
