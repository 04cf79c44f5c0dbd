"""tree.py: questions, answers and branches."""

import pytest

from llamachat.chat.titles import first_line
from llamachat.chat.tree import Node, Tree, path
from llamachat.errors import UsageError


def grow(tree: Tree, parent: Node, *questions: str) -> Node:
    """Each question with an answer, one behind the other; returns the last answer."""
    for text in questions:
        parent = tree.add(tree.add(parent, "user", text), "assistant", "re: " + text)
    return parent


def test_a_path_leads_from_the_first_question_to_the_message() -> None:
    tree = Tree()
    end = grow(tree, tree.root, "a", "b")
    assert [node.text for node in path(end)] == ["a", "re: a", "b", "re: b"] and path(tree.root) == []


def test_branches_are_the_ends_of_lines_in_the_order_they_began() -> None:
    tree = Tree()
    first = grow(tree, tree.root, "a")
    one, two = grow(tree, first, "b", "c"), grow(tree, first, "d\nmore")
    found = tree.branches()
    assert [(b.id, b.active, b.turns, b.last, b.forked_at) for b in found] == [
        (one.id, False, 3, "c", 1),
        (two.id, True, 2, "d", 2),
    ]


def test_the_active_point_is_a_branch_even_in_the_middle_of_a_line_or_at_its_start() -> None:
    tree = Tree()
    first = grow(tree, tree.root, "a")
    end = grow(tree, first, "b")
    tree.active = first
    assert [branch.id for branch in tree.branches()] == [first.id, end.id]
    tree.active = tree.root
    assert [(branch.id, branch.turns) for branch in tree.branches()] == [(0, 0), (end.id, 2)]


def test_another_answer_shares_its_question_with_no_whole_turn() -> None:
    tree = Tree()
    question = grow(tree, tree.root, "a", "b").parent
    assert question is not None
    tree.add(question, "assistant", "another")
    assert [branch.forked_at for branch in tree.branches()] == [1, 2]


def test_dropping_a_message_takes_all_behind_it_and_its_marks() -> None:
    tree = Tree()
    first = grow(tree, tree.root, "a")
    end = grow(tree, first, "b", "c")
    tree.forks.add(end.id)
    question = path(end)[2]
    tree.drop(question)
    assert tree.active is first and len(list(tree)) == 2 and not tree.forks and tree.node(end.id) is None


@pytest.mark.parametrize("id", [1, 99])
def test_only_answers_name_branches(id: int) -> None:
    tree = Tree()
    grow(tree, tree.root, "a")
    with pytest.raises(UsageError):
        tree.find(id)


def test_a_title_is_the_first_line_with_something_in_it() -> None:
    assert first_line("\n  \n  so it is \nmore") == "so it is" and first_line(" \n") == ""
