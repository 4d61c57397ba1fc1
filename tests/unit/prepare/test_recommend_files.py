"""Interactions are read whole or refused by line, column and value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_files import InteractionColumns, read_interactions, read_items
from headrace_server.prepare.recommend_interactions import Interactions, interactions_of


def written(folder: Path, text: str, name: str = "events.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def pairs(table: Interactions) -> dict[tuple[str, str], float]:
    return {
        (table.users[user], table.items[item]): float(weight)
        for user, item, weight in zip(table.user, table.item, table.weight, strict=True)
    }


def test_users_items_weights_and_times_are_read_and_other_columns_passed_over(tmp_path: Path) -> None:
    text = "when,user,item,weight,timestamp\nx,ann,tea,2.5,100\nx,bob,tea,1,2026-01-02T03:04:05Z\n\nx,ann,jam,1e2,7\n"
    table, num_repeated = read_interactions(written(tmp_path, text))
    assert pairs(table) == {("ann", "tea"): 2.5, ("ann", "jam"): 100.0, ("bob", "tea"): 1.0}
    assert (table.users, table.items, num_repeated) == (("ann", "bob"), ("tea", "jam"), 0)
    assert table.time is not None
    assert table.time.tolist() == [100.0, 7.0, 1767323045.0]


def test_a_repeated_pair_adds_its_weight_and_keeps_its_latest_time(tmp_path: Path) -> None:
    text = "user\titem\tweight\ttimestamp\na\tx\t1\t5\nb\tx\t1\t1\na\tx\t2\t9\na\tx\t4\t7\n"
    table, num_repeated = read_interactions(written(tmp_path, text, "events.tsv"))
    assert pairs(table) == {("a", "x"): 7.0, ("b", "x"): 1.0}
    assert num_repeated == 2
    assert table.time is not None
    assert table.time.tolist() == [9.0, 1.0]


def test_columns_may_have_other_names_and_values_may_be_quoted(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeffwho,what\n"a, b","say ""x"""\n')
    table, _ = read_interactions(path, InteractionColumns(user="who", item="what"))
    assert pairs(table) == {("a, b", 'say "x"'): 1.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user,thing\na,x\n", "events.csv, line 1: no column 'item', the columns are 'user', 'thing'"),
        ("user,item\n", "events.csv holds no interaction"),
        ("", "no column 'user'"),
        ("user,user\na,b\n", "line 1: 'user', 'user', names must differ"),
        ("user,item\na,x\nb\n", "line 3: 1 values, the first row names 2 columns"),
        ("user,item\na,x\n\n,x\n", "line 4, column user: '', must be 1 to 256 bytes"),
        ("user,item\na, x\n", "line 2, column item: ' x', must be"),
        (f"user,item\n{'é' * 129},x\n", "line 2, column user: 'é"),
        ("user,item,weight\na,x,1\na,y,much\n", "line 3, column weight: 'much', must be a number above 0"),
        ("user,item,weight\na,x,0\n", "line 2, column weight: '0', must be a number above 0"),
        ("user,item,weight\na,x,-2\n", "column weight: '-2', must be"),
        ("user,item,weight\na,x,nan\n", "column weight: 'nan', must be"),
        ("user,item,weight\na,x,1e39\n", "column weight: '1e39', must be"),
        ("user,item,timestamp\na,x,yesterday\n", "line 2, column timestamp: 'yesterday', must be a number or ISO 8601"),
        ("user,item,timestamp\na,x,inf\n", "column timestamp: 'inf', must be"),
        ('user,item\na,"x\n', "events.csv, line 2: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_named_by_line_column_and_value(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PrepareError) as raised:
        read_interactions(written(tmp_path, text))
    assert said in raised.value.message
    assert raised.value.cure


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=r"neither \.csv nor \.tsv nor \.parquet"):
        read_interactions(written(tmp_path, "user,item\n", "events.txt"))
    with pytest.raises(PrepareError, match="No such file"):
        read_interactions(tmp_path / "missing.csv")
    (tmp_path / "latin.csv").write_bytes(b"user,item\na,x\nb\xe9,y\n")
    with pytest.raises(PrepareError, match=r"latin.csv, after line \d: not UTF-8"):
        read_interactions(tmp_path / "latin.csv")


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    from pyarrow import parquet

    columns = {"user": [1, 2, 1], "item": ["x", "x", "y"], "weight": [1.0, 2.0, 3.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "events.parquet")
    table, _ = read_interactions(tmp_path / "events.parquet")
    assert pairs(table) == {("1", "x"): 1.0, ("1", "y"): 3.0, ("2", "x"): 2.0}
    parquet.write_table(pyarrow.table({"user": ["a", None], "item": ["x", "y"]}), tmp_path / "empty.parquet")
    with pytest.raises(PrepareError, match="line 2, column user: '', must be"):
        read_interactions(tmp_path / "empty.parquet")
    with pytest.raises(PrepareError, match="not readable as Parquet"):
        read_interactions(written(tmp_path, "user,item\n", "text.parquet"))


def test_what_is_known_of_items_is_typed_by_its_column(tmp_path: Path) -> None:
    path = written(tmp_path, "item,title,year,price,code\nx,Ex,1999,2.5,07a\ny,,2001,3,8\n", "items.csv")
    assert read_items(path) == {
        "x": {"title": "Ex", "year": 1999, "price": 2.5, "code": "07a"},
        "y": {"year": 2001, "price": 3.0, "code": "8"},
    }
    with pytest.raises(PrepareError, match="line 3, column item: 'x' again"):
        read_items(written(tmp_path, "item,n\nx,1\nx,2\n"))
    with pytest.raises(PrepareError, match="no column 'item'"):
        read_items(written(tmp_path, "id,n\nx,1\n"))


def test_rare_users_and_items_are_left_out_until_none_is_rare() -> None:
    users, items = zip(
        *[("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "z"), ("d", "z")], strict=True
    )
    left = interactions_of(users, items)[0].of_at_least(user_items=2, item_users=2)
    # z has two users until d, who has nothing else, goes; then c has x alone and goes too
    assert set(pairs(left)) == {("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")}
    assert np.array_equal(left.popularity(), [2, 2])


@pytest.mark.parametrize(
    "events",
    [[("a", "x"), ("a", "y"), ("a", "z")], [("a", "x"), ("b", "x")], [("a", "x")]],
    ids=["one user", "one item", "one pair"],
)
def test_too_few_interactions_are_told_with_their_counts(events: list[tuple[str, str]]) -> None:
    users, items = zip(*events, strict=True)
    with pytest.raises(PrepareError, match=rf"too few interactions: {len(set(users))} users, {len(set(items))} items"):
        interactions_of(users, items)[0].of_at_least(user_items=1, item_users=1)
