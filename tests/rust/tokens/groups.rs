//! Prompts and responses of preference groups: the border between them, each stored once, and what is left out.

use mipo::error::Error;
use mipo::tokens::{GroupRows, Groups, Interner, Plain, Truncated};

use crate::data::on_threads;
use crate::tokens::data::{Arrays, Group, encoder, push, rows};

#[test]
fn all_of_a_group_start_at_the_shortest_common_prefix() -> Result<(), Error> {
    let (group_rows, prompts, responses) = push(
        &[
            ("1 2 3", "1 2 3 4 5", &["1 2 34 5"]),
            ("9", "9 4 5", &["9"]),
            ("9", "9 4 5", &[]),
            ("7 8", "6", &["7 8 6"]),
        ],
        None,
    )?;
    assert_eq!(prompts, [&[1, 2][..], &[9], &[]]);
    assert_eq!(responses, [&[3, 4, 5][..], &[34, 5], &[4, 5], &[], &[6], &[7, 8, 6]]);
    assert_eq!(group_rows.prompt, [0, 1, 1, 2]);
    assert_eq!(group_rows.chosen, [0, 2, 2, 4]);
    assert_eq!(
        (group_rows.offsets, group_rows.rejected),
        (vec![0, 1, 2, 2, 3], vec![1, 3, 5])
    );
    assert_eq!((group_rows.verdicts, group_rows.merged), (vec![0; 4], 2));
    Ok(())
}

#[test]
fn equal_ids_are_one_row_whatever_text_they_come_from() -> Result<(), Error> {
    let (group_rows, prompts, responses) = push(
        &[
            ("1", "1 7", &["1  8", "1 7"]),
            (" 1", "1\t7", &["1 9"]),
            ("2", "2 8", &["2 7"]),
        ],
        None,
    )?;
    assert_eq!(prompts, [[1], [2]]);
    assert_eq!(responses, [[7], [8], [9]]);
    assert_eq!(
        (group_rows.prompt, group_rows.chosen, group_rows.rejected),
        (vec![0, 0, 1], vec![0, 0, 1], vec![1, 0, 2, 0])
    );
    Ok(())
}

#[test]
fn what_was_taken_is_remembered_and_not_stored_again() -> Result<(), Error> {
    let (encoder, mut interner) = (encoder(), Interner::default());
    let mut push = |groups: &[Group]| {
        let arrays = Arrays::new(groups);
        let group_rows = interner.push(&encoder, &arrays.texts, arrays.groups(), None)?;
        let pending = interner.pending();
        let taken = rows(&interner.take_prompts()).concat().len() + rows(&interner.take_responses()).concat().len();
        assert_eq!((pending, interner.pending()), (4 * taken, 0));
        Ok::<_, Error>((group_rows.prompt, group_rows.chosen, group_rows.rejected, taken))
    };
    assert_eq!(push(&[("1", "1 7", &["1 8"])])?, (vec![0], vec![0], vec![1], 3));
    assert_eq!(push(&[("1", "1 8", &["1 7"])])?, (vec![0], vec![1], vec![0], 0));
    assert_eq!(
        push(&[("1", "1 8", &["1 5 5"]), ("2", "2 7", &[])])?,
        (vec![0, 1], vec![1, 0], vec![2], 3)
    );
    Ok(())
}

#[test]
fn a_truncated_response_loses_its_last_end_of_turn_and_what_follows() -> Result<(), Error> {
    let arrays = Arrays::new(&[("1 90", "1 90 4 91 5 90 10", &["1 90 4 90 10", "1 90 6 7", "1 90 90"])]);
    let truncated = Truncated {
        chosen: &[true],
        rejected: &[false, true, true],
        end_ids: &[98, 90],
    };
    let groups = Groups {
        truncated,
        ..arrays.groups()
    };
    let mut interner = Interner::default();
    interner.push(&encoder(), &arrays.texts, groups, None)?;
    assert_eq!(rows(&interner.take_prompts()), [[1, 90]]);
    assert_eq!(
        rows(&interner.take_responses()),
        [&[4, 91, 5][..], &[4, 90, 10], &[6, 7], &[]]
    );
    let group_rows = interner.push(&encoder(), &arrays.texts, groups, Some(100))?;
    assert_eq!(group_rows.verdicts, [1], "one of them has no token of its own");
    Ok(())
}

#[test]
fn a_group_left_out_says_why_and_leaves_nothing_behind() -> Result<(), Error> {
    let groups: [Group; 6] = [
        ("1 2", "1 2 3", &["1 2 4"]),
        ("1 2", "1 2 3", &["1 2 4", "1 2 3 4"]),
        ("1 2", "1 2 3", &["1 2"]),
        ("1 2 3", "1 2 3 4", &["1 2 3 5"]),
        ("5 6 7 8", "5 6 7 8", &["5 6 7 8 9"]),
        ("5 6 7", "5 6 8 9", &["5 6 7"]),
    ];
    let (group_rows, prompts, responses) = push(&groups, Some(3))?;
    assert_eq!(group_rows.verdicts, [0, 3, 1, 2, 1, 3]);
    assert_eq!((prompts, responses), (vec![vec![1, 2]], vec![vec![3], vec![4]]));
    assert_eq!((group_rows.prompt, group_rows.chosen), (vec![0], vec![0]));
    assert_eq!(
        (group_rows.offsets, group_rows.rejected, group_rows.merged),
        (vec![0, 1], vec![1], 0)
    );
    let (group_rows, ..) = push(&groups, Some(0))?;
    assert_eq!(
        (group_rows.verdicts, group_rows.offsets),
        (vec![2, 2, 1, 2, 1, 2], vec![0])
    );
    let (group_rows, ..) = push(&groups, None)?;
    assert_eq!(group_rows.verdicts, [0; 6]);
    Ok(())
}

#[test]
fn text_closes_with_one_end_unless_it_was_cut_off() -> Result<(), Error> {
    let (chosen, rejected) = ([false, true], [false, true, false]);
    let truncated = Truncated {
        chosen: &chosen,
        rejected: &rejected,
        end_ids: &[],
    };
    let texts = Plain {
        prompts: vec!["1 ", "2 "],
        chosen: vec!["3", "3"],
        rejected: vec!["4 50", "4 50", "4"],
        end: " 50",
        truncated,
    };
    let groups = Groups {
        offsets: &[0, 1, 3],
        rows: &[1, 2],
        truncated,
        add_special_tokens: true,
    };
    let mut interner = Interner::default();
    let group_rows = interner.push(&encoder(), &texts, groups, None)?;
    assert_eq!(rows(&interner.take_prompts()), [[99, 1], [99, 2]]);
    assert_eq!(rows(&interner.take_responses()), [&[3, 50][..], &[4, 50], &[3]]);
    assert_eq!((group_rows.chosen, group_rows.rejected), (vec![0, 2], vec![1, 1, 1]));
    Ok(())
}

#[test]
fn memory_does_not_grow_with_the_number_of_sequences() -> Result<(), Error> {
    // One more than are known at a time: the last one is new, and then so is the first.
    let count = (7 << 15) + 1;
    let words: Vec<String> = (0..count)
        .map(|row| format!("{} {} {}", row % 90, row / 90 % 90, row / 8_100))
        .collect();
    let group = |row: usize| (words[row].as_str(), words[row].as_str(), &[][..]);
    let (encoder, mut interner, mut prompts) = (encoder(), Interner::default(), Vec::new());
    let rows: Vec<usize> = (0..count - 1).chain([0, count - 1, count - 1, 0]).collect();
    for batch in rows.chunks(1 << 14) {
        let groups: Vec<Group> = batch.iter().map(|&row| group(row)).collect();
        let arrays = Arrays::new(&groups);
        prompts.extend(interner.push(&encoder, &arrays.texts, arrays.groups(), None)?.prompt);
    }
    let (known, last) = prompts.split_at(count - 1);
    assert!(known.iter().copied().eq(0..count as u64 - 1));
    assert_eq!(last, [0, count as u64 - 1, count as u64 - 1, count as u64]);
    let table = interner.take_prompts();
    assert_eq!((table.len(), table.row(0)), (count + 1, table.row(count)));
    Ok(())
}

#[test]
fn no_groups_are_no_rows() -> Result<(), Error> {
    let (group_rows, prompts, responses) = push(&[], Some(1))?;
    let nothing = GroupRows {
        offsets: vec![0],
        ..GroupRows::default()
    };
    assert_eq!(group_rows, nothing);
    assert!(prompts.is_empty() && responses.is_empty());
    Ok(())
}

/// Many groups, some with responses of others, of every verdict.
fn many(count: usize) -> Vec<(String, String, Vec<String>)> {
    (0..count)
        .map(|row| {
            let prompt = format!("{} {}", row % 7, row % 11);
            let joint = |k: usize| format!("{prompt} {}", "5 ".repeat((row + k) % 13) + &(k % 90).to_string());
            let rejected = (1..1 + row % 4).map(|k| joint(row * k)).collect();
            (prompt.clone(), joint(row), rejected)
        })
        .collect()
}

#[test]
fn the_result_is_the_same_on_any_number_of_threads_and_in_any_batches() -> Result<(), Error> {
    let owned = many(1_000);
    let borrowed: Vec<(&str, &str, Vec<&str>)> = owned
        .iter()
        .map(|(prompt, chosen, rejected)| {
            let rejected = rejected.iter().map(String::as_str).collect();
            (prompt.as_str(), chosen.as_str(), rejected)
        })
        .collect();
    let groups: Vec<Group> = borrowed
        .iter()
        .map(|(prompt, chosen, rejected)| (*prompt, *chosen, rejected.as_slice()))
        .collect();
    let whole = push(&groups, Some(12))?;
    assert!(whole.0.verdicts.contains(&3) && whole.0.prompt.len() > 500);
    for threads in [1, 2, 7] {
        assert_eq!(on_threads(threads, || push(&groups, Some(12)))?, whole);
    }
    let (encoder, mut interner, mut group_rows) = (encoder(), Interner::default(), GroupRows::default());
    for batch in groups.chunks(77) {
        let arrays = Arrays::new(batch);
        let part = interner.push(&encoder, &arrays.texts, arrays.groups(), Some(12))?;
        let before = group_rows.rejected.len() as i64;
        group_rows.verdicts.extend(part.verdicts);
        group_rows.prompt.extend(part.prompt);
        group_rows.chosen.extend(part.chosen);
        let skip = usize::from(!group_rows.offsets.is_empty());
        group_rows
            .offsets
            .extend(part.offsets.iter().skip(skip).map(|end| before + end));
        group_rows.rejected.extend(part.rejected);
        group_rows.merged += part.merged;
    }
    let tables = (rows(&interner.take_prompts()), rows(&interner.take_responses()));
    assert_eq!((group_rows, tables.0, tables.1), whole);
    Ok(())
}
