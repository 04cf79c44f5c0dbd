"""The ends of the help pages: examples, and what else a manual page would say."""

from llamachat.cli.options import examples

CODES = "Exit codes: 0 ok, 2 usage, 3 model or file error, 4 does not fit, 130 interrupted, 141 output no longer read."
DEFAULTS = (
    "What --ctx-size sets, LLAMACHAT_CTX_SIZE in the environment sets as well, and after that ctx-size in the config file (see "
    "llamachat config --help); so it is with all flags of chat."
)
TEXTS = (
    "Text is UTF-8. Of a file and of stdin a byte-order mark and the last line's end are left out; other line ends stay what "
    "they are, CRLF too, as in JSON."
)
ROOT = examples(
    ("llamachat", "chat with the default model"),
    ("llamachat 'Name three moons.'", "with a first question"),
    ("llamachat -c", "go on with the latest dialog"),
    ("llamachat -m llama-3.2-1b", "with another model"),
    ("llamachat complete 'Name three moons.'", "one answer, for scripts"),
    ("llamachat models list", "what there is, and what would fit"),
    ("llamachat sessions list", "the dialogs that are saved"),
    ("llamachat COMMAND --help", "flags and examples of a command"),
    note=f"run, pull, ls, list, show and rm do what ollama's do.\n\n{CODES}",
)
CHAT = examples(
    ("llamachat 'Name three moons.'", "with a first question"),
    ("git diff | llamachat 'What changed?'", "off a terminal one answer: stdin follows the question"),
    ("llamachat -s 'Answer in one sentence.'", "with a system prompt"),
    ("llamachat -m ./model.gguf --ctx-size 4096", "with a file of one's own"),
    ("llamachat -m ollama:llama3.2:1b", "what another program has fetched, in place"),
    ("llamachat -m ./llama --lora ./adapter:0.5", "and a LoRA adapter, scaled; see /help lora"),
    ("llamachat --temp 0 --seed 1", "the same answers each time"),
    ("llamachat --server http://localhost:8080 -m NAME", "over an OpenAI-compatible server"),
    ("llamachat --persona pirate", "see /help persona in a chat"),
    ("llamachat chat < questions.txt", "off a terminal each line is a message"),
    note=f"{DEFAULTS}\n\n{CODES}",
)
RUN = examples(
    ("llamachat run llama-3.2-1b", "as llamachat -m llama-3.2-1b"),
    ("llamachat run llama-3.2-1b Name three moons.", "with a first question"),
    note=f"{DEFAULTS}\n\n{CODES}",
)
COMPLETE = examples(
    ("llamachat complete 'Name three moons.'", ""),
    ("git diff | llamachat complete 'Write a commit message.'", "stdin follows the prompt"),
    ("llamachat complete -f letter.txt --json | jq -r .text", "text, tokens and timings as JSON"),
    ("llamachat complete --raw 'Once upon a time' -n 50", "continue plain text"),
    ("llamachat complete --regex 'yes|no' 'Is Rome in Italy?'", "nothing but such an answer; also --schema, --grammar"),
    ("llamachat complete --jsonl prompts.jsonl -o answers.jsonl", "a batch, run together; --resume goes on with it"),
    ("llamachat complete --server http://localhost:8080 'Hi.'", "ask a server; its key: --key-env VARIABLE"),
    note=f"{TEXTS}\n\n{DEFAULTS}\n\n{CODES}",
)
EMBED = examples(
    ("llamachat embed 'A quiet morning'", "a vector, as a JSON array"),
    ("llamachat embed -f letter.txt --json", "with its model, pooling and tokens"),
    ("llamachat embed --jsonl texts.jsonl -o vectors.npy", "all of them, for numpy.load"),
    ("llamachat embed -m ./Qwen3-Embedding-0.6B --jsonl texts.jsonl", "by a model made for it"),
    note=f"{TEXTS}\n\n{DEFAULTS}\n\n{CODES}",
)
CLASSIFY = examples(
    ("llamachat classify -m ./sentiment 'What a day!'", "label and probability"),
    ("llamachat classify -m ./topics -f letter.txt --top 3", ""),
    ("llamachat classify -m ./reranker 'Who made it?' --documents docs.txt --top 5", "the best of its lines"),
    ("llamachat classify -m ./topics --jsonl texts.jsonl -o labels.jsonl", "a batch; --resume goes on with it"),
    note=f"{TEXTS}\n\n{DEFAULTS}\n\n{CODES}",
)
TAG = examples(
    ("llamachat tag -m ./names 'Ada met Charles in London.'", "start, end, label, probability, text"),
    ("llamachat tag -m ./names -f letter.txt --json | jq '.spans[]'", ""),
    note=f"Offsets are characters of the text. {TEXTS}\n\n{DEFAULTS}\n\n{CODES}",
)
EXTRACT = examples(
    ("llamachat extract -m ./reader 'Who made it?' -f letter.txt", "the answer as it stands there"),
    ("curl -s URL | llamachat extract -m ./reader 'When?' --top 3 --always", ""),
    note=f"Offsets are characters of the text. {TEXTS}\n\n{DEFAULTS}\n\n{CODES}",
)
CONFIG = examples(
    ("llamachat config", "what holds, and where it comes from"),
    ("llamachat config set temperature 0.7", ""),
    ("llamachat config set stop '###' END", "what may be repeated takes several"),
    ("llamachat config unset temperature", ""),
    ("$EDITOR $(llamachat config path)", "it is TOML: temperature = 0.7"),
    note=CODES,
)
QUANTIZE = examples(
    ("llamachat quantize ./llama-3.2-1b -o llama-int4", "int4, the default"),
    ("llamachat quantize ./model -o out --scheme int8", ""),
    ("llamachat quantize ./model -o out --fits 4GB", "bits go where they save most"),
    ("llamachat quantize ./model -o out --lora ./adapter", "merge an adapter first"),
    ("llamachat quantize ./model -o out --override '*.down_proj=int8' --report", "and measure what it cost"),
    ("llamachat -m ./llama-int4", "chat with the result"),
    note=CODES,
)
EVALUATE = examples(
    ("llamachat eval -m ./llama-int4", "perplexity"),
    ("llamachat eval -m ./llama-int4 --against ./llama-3.2-1b", "and KL divergence from the original"),
    ("llamachat eval -m X.gguf --engine native --against X.gguf --vs-gguf X.gguf", "what our engine's rounding costs"),
    note=CODES,
)
BENCH = examples(
    ("llamachat bench", "the default model on this machine"),
    ("llamachat bench -m ./model.gguf --vs-gguf ./model.gguf", "beside llama.cpp, in the same run"),
    ("llamachat bench --shape 8b --vs-llamacpp", "random weights of a real shape; no download"),
    ("llamachat bench --profile", "where the time of a token goes"),
    ("llamachat bench --shape 1b --lora-rank 16", "what an adapter costs"),
    note=CODES,
)
LIST = examples(("llamachat models list", ""), ("llamachat models list --json | jq -r '.[].name'", ""), note=CODES)
SEARCH = examples(
    ("llamachat models search qwen3 4b", ""),
    ("llamachat -m hf:Qwen/Qwen3-4B-GGUF", "chat with one: the best quant that fits"),
    ("llamachat models search llama --json | jq -r '.[].reference'", ""),
    note=f"runs: whether its architecture is one of ours, by what the hub says.\n\n{CODES}",
)
SHOW = examples(
    ("llamachat models show smollm2-135m", ""),
    ("llamachat models show hf:owner/repo", "the quants that it has"),
    ("llamachat models show ./model.gguf", ""),
    note=CODES,
)
PULL = examples(
    ("llamachat models pull llama-3.2-1b", "again to go on where it broke off"),
    ("llamachat models pull hf:owner/repo", "of a hub's repository the best quant that fits"),
    ("llamachat models pull hf:owner/repo:Q4_K_M", "or this one; hf.co/owner/repo:Q4_K_M and pages' addresses too"),
    ("llamachat models pull hf:owner/repo/model-Q4_0.gguf@main", "or one file, at a revision"),
    note=CODES,
)
REMOVE = examples(("llamachat models rm llama-3.2-1b", ""), note=CODES)
CACHE = examples(
    ("llamachat models cache", "the longest unused first"),
    ("llamachat models cache llama-3.2-1b --clear", "delete what is of one model"),
    ("llamachat models cache --clear", "delete all"),
    ("llamachat config set pack-cache 5GB", "or off: of packed weights nothing is kept"),
    note=CODES,
)
SESSIONS = examples(
    ("llamachat sessions list", "the latest first; -c goes on with it"),
    ("llamachat sessions search sourdough", "questions and answers of all dialogs"),
    ("llamachat sessions show work | less", ""),
    ("llamachat sessions export work work.md", "or work.json"),
    ("llamachat sessions rm work", "with its keys and values, and its questions in the input history"),
    note=CODES,
)
