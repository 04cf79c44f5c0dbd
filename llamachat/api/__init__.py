"""The Python API: Meta's Llama 3 reference code (`llama/generation.py`, `llama/tokenizer.py`) on any checkpoint we read."""

from llamachat.api.llama import ChatPrediction as ChatPrediction
from llamachat.api.llama import CompletionPrediction as CompletionPrediction
from llamachat.api.llama import Llama as Llama
from llamachat.api.model_args import ModelArgs as ModelArgs
from llamachat.api.streaming import Stream as Stream
from llamachat.api.tokenizer import Dialog as Dialog
from llamachat.api.tokenizer import Message as Message
from llamachat.api.tokenizer import Role as Role
from llamachat.generation.classifier import Classification as Classification
from llamachat.generation.extractor import Extraction as Extraction
from llamachat.generation.tagger import Span as Span
