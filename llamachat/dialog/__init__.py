"""Roles and messages -> token ids."""

from llamachat.dialog.formats import (
    ChatML as ChatML,
)
from llamachat.dialog.formats import (
    Content as Content,
)
from llamachat.dialog.formats import (
    DialogFormat as DialogFormat,
)
from llamachat.dialog.formats import (
    Format as Format,
)
from llamachat.dialog.formats import (
    Guard as Guard,
)
from llamachat.dialog.formats import (
    Layout as Layout,
)
from llamachat.dialog.formats import (
    Llama2 as Llama2,
)
from llamachat.dialog.formats import (
    Llama3 as Llama3,
)
from llamachat.dialog.formats import (
    Message as Message,
)
from llamachat.dialog.formats import (
    Part as Part,
)
from llamachat.dialog.formats import (
    Role as Role,
)
from llamachat.dialog.formats import (
    Zephyr as Zephyr,
)
from llamachat.dialog.formats import (
    choose as choose,
)
