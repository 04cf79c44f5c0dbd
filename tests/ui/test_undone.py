"""What /undo and /edit bring back into the input of a real terminal, and a question that was given at the start."""

from collections.abc import Callable

from pty_chat import Terminal


def test_undo_puts_the_question_back_to_be_sent_again(start: Callable[..., Terminal]) -> None:
    terminal = start(options=', theme="none", question="/first one"')
    terminal.wait_for("You said: /first one")
    terminal.prompted()
    terminal.child.send("\x1b[A")
    terminal.wait(lambda lines: terminal.line() == "❯ //first one")
    terminal.child.send("\x15/undo\r")
    terminal.wait_for("went back")
    terminal.wait(lambda lines: terminal.line() == "❯ //first one")
    terminal.child.send("\x15second one\r")
    terminal.wait_for("You said: second one")
    terminal.prompted()
    terminal.child.send("/edit\r")
    terminal.wait(lambda lines: terminal.line() == "❯ /edit 1 second one")
    terminal.child.send("!\r")
    terminal.wait_for("You said: second one!")
    terminal.prompted()
    assert terminal.leave() == 0
    assert "('user', 'second one!'), ('assistant', 'You said: second one!')]" in "".join(terminal.all_lines())
