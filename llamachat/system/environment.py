"""What other programs that we start may see of the environment: what they need, never the person's tokens and keys.

Every child is started with `env=` one of these; tests/test_environment.py finds one that is not.
"""

import os
import re
from collections.abc import Mapping

_SYSTEM = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_[A-Z]+ TZ TMPDIR TEMP TMP XDG_[A-Z_]+ LD_LIBRARY_PATH DYLD_[A-Z_]+ "
    "SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERPROFILE APPDATA LOCALAPPDATA PROGRAMDATA PROGRAMFILES"
)
_PYTHON = f"{_SYSTEM} PYTHONHOME PYTHONPATH PYTHONUSERBASE"
_OURS = (
    f"{_PYTHON} LLAMACHAT_[A-Z_]+ HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE OMP_[A-Z_]+ GOMP_[A-Z_]+ KMP_[A-Z_]+ "
    "MKL_[A-Z_]+ CUDA_[A-Z_]+ NCCL_[A-Z_]+ GLOO_[A-Z_]+"
)
_PIP = (
    f"{_PYTHON} PIP_[A-Z_]+ NETRC HTTPS?_PROXY ALL_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE "
    "CURL_CA_BUNDLE"
)
_COMPILER = (
    f"{_SYSTEM} CPATH C_INCLUDE_PATH LIBRARY_PATH COMPILER_PATH GCC_EXEC_PREFIX SDKROOT DEVELOPER_DIR "
    "MACOSX_DEPLOYMENT_TARGET CCACHE_[A-Z_]+ INCLUDE LIB"
)
_EDITOR = (
    f"{_SYSTEM} TERM TERMINFO TERMINFO_DIRS COLORTERM TERM_PROGRAM COLUMNS LINES NO_COLOR TMUX TMUX_PANE STY DISPLAY "
    "WAYLAND_DISPLAY XAUTHORITY DBUS_SESSION_BUS_ADDRESS VISUAL EDITOR VIM VIMRUNTIME VIMINIT EXINIT NVIM[A-Z_]* "
    "EMACS[A-Z_]* ALTERNATE_EDITOR VSCODE_[A-Z_]+"
)
_CLIPBOARD = (
    f"{_SYSTEM} DISPLAY WAYLAND_DISPLAY WAYLAND_SOCKET XAUTHORITY DBUS_SESSION_BUS_ADDRESS WSL_DISTRO_NAME WSL_INTEROP WSLENV "
    "PREFIX TERMUX_[A-Z_]+ ANDROID_[A-Z_]+ BOOTCLASSPATH DEX2OATBOOTCLASSPATH __CF_USER_TEXT_ENCODING"
)


def of_python() -> dict[str, str]:
    """For a Python of ours that computes and needs nothing else."""
    return _only(_PYTHON)


def of_ourselves() -> dict[str, str]:
    """For a further llamachat, which finds the same models and settings; it fetches none."""
    return _only(_OURS)


def of_pip(extra: Mapping[str, str]) -> dict[str, str]:
    """For pip, which must reach the person's package index."""
    return _only(_PIP) | dict(extra)


def of_compiler() -> dict[str, str]:
    return _only(_COMPILER)


def of_editor() -> dict[str, str]:
    """For a program that the person works with at this terminal or on this screen."""
    return _only(_EDITOR)


def of_clipboard() -> dict[str, str]:
    """For a program that puts a text on the clipboard of this screen, of Windows around a WSL, or of Termux."""
    return _only(_CLIPBOARD)


def _only(names: str) -> dict[str, str]:
    wanted = re.compile("|".join(names.split()), re.IGNORECASE)  # http_proxy is as good as HTTP_PROXY
    return {name: value for name, value in os.environ.items() if wanted.fullmatch(name)}
