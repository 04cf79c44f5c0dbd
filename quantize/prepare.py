"""What loading is handed (models/load.py); most models are not quantized then, and import nothing more of this package."""

from llamachat.core.spec import QuantConfig
from llamachat.events import Progress
from llamachat.formats import Checkpoint


def prepare(source: Checkpoint, wanted: QuantConfig, keep: bool, progress: Progress) -> Checkpoint:
    """See models.load.Prepare."""
    from quantize.once import Quantized, quantized_once

    return quantized_once(source, wanted, progress) if keep else Quantized(source, wanted)
