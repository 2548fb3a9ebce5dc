//! The border between prompt and response against obvious twins, and the encoder on a tokenizer of nine words.
#![allow(clippy::unwrap_used)]

use mipo::engine::Choice;
use mipo::error::Error;
use mipo::split::{Groups, Split, Unfinished, split};
use mipo::tokens::{Encoder, Table, View};

/// Special tokens around every text, and truncation and padding that the encoder has to switch off.
const TOKENIZER: &str = r#"{
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
              "pad_type_id": 0, "pad_token": "<pad>"},
  "added_tokens": [],
  "normalizer": null,
  "pre_tokenizer": {"type": "WhitespaceSplit"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
  "decoder": null,
  "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "<s>": 1, "a": 2, "b": 3, "c": 4, "d": 5}, "unk_token": "<unk>"}
}"#;

fn table(rows: &[&[u32]]) -> Table {
    let mut table = Table::new();
    for row in rows {
        table.ids.extend_from_slice(row);
        table.offsets.push(table.ids.len() as i64);
    }
    table
}

fn rows(table: &Table) -> Vec<&[u32]> {
    (0..table.view().len()).map(|row| table.view().row(row)).collect()
}

fn groups<'a>(prompt: &'a [u64], chosen: &'a [u64], rejected_offsets: &'a [i64], rejected: &'a [u64]) -> Groups<'a> {
    Groups {
        prompt,
        chosen,
        rejected_offsets,
        rejected,
    }
}

/// The prompt 1 2 3 of which the last token merges into the second response.
fn merging() -> (Table, Table) {
    (
        table(&[&[1, 2, 3], &[9]]),
        table(&[&[1, 2, 3, 4, 5], &[1, 2, 34, 5], &[9, 4, 5], &[9]]),
    )
}

#[test]
fn all_of_a_group_start_at_the_shortest_common_prefix() -> Result<(), Error> {
    let (prompts, joints) = merging();
    let found = split(
        prompts.view(),
        joints.view(),
        groups(&[0, 1, 1], &[0, 2, 2], &[0, 1, 2, 2], &[1, 3]),
        None,
    )?;
    assert_eq!(rows(&found.prompts), [&[1, 2][..], &[9]]);
    assert_eq!(rows(&found.responses), [&[3, 4, 5][..], &[34, 5], &[4, 5], &[]]);
    assert_eq!(
        (found.prompt, found.chosen, found.rejected),
        (vec![0, 1, 1], vec![0, 2, 2], vec![1, 3])
    );
    assert_eq!((found.merged, found.empty), (1, vec![3]));
    Ok(())
}

#[test]
fn equal_ids_are_one_row_whatever_row_they_come_from() -> Result<(), Error> {
    let (prompts, joints) = (table(&[&[1], &[2]]), table(&[&[1, 7], &[2, 7], &[2, 8], &[1, 8]]));
    let found = split(
        prompts.view(),
        joints.view(),
        groups(&[0, 1], &[0, 2], &[0, 1, 2], &[3, 1]),
        None,
    )?;
    assert_eq!(rows(&found.responses), [&[7], &[8]]);
    assert_eq!((found.chosen, found.rejected), (vec![0, 1], vec![1, 0]));
    Ok(())
}

#[test]
fn an_unfinished_response_loses_its_last_end_of_turn_and_what_follows() -> Result<(), Error> {
    let (prompts, end, line) = (table(&[&[1, 99]]), 99, 10);
    let joints = table(&[
        &[1, end, 4, 99, 5, end, line],
        &[1, end, 4, end, line],
        &[1, end, 6, 7],
        &[1, end, end],
    ]);
    let flags = Unfinished {
        joint: &[true, false, true, true],
        end_ids: &[98, end],
    };
    let found = split(
        prompts.view(),
        joints.view(),
        groups(&[0], &[0], &[0, 3], &[1, 2, 3]),
        Some(flags),
    )?;
    assert_eq!(rows(&found.prompts), [&[1, end]]);
    assert_eq!(rows(&found.responses), [&[4, 99, 5][..], &[4, end, line], &[6, 7], &[]]);
    assert_eq!(found.empty, [3]);
    Ok(())
}

#[test]
fn no_groups_is_a_split_of_nothing() -> Result<(), Error> {
    let found = split(
        Table::new().view(),
        Table::new().view(),
        groups(&[], &[], &[0], &[]),
        None,
    )?;
    assert_eq!(found, Split::default());
    assert!(found.prompts.view().is_empty());
    Ok(())
}

#[test]
fn a_view_may_be_a_part_of_a_larger_table() -> Result<(), Error> {
    let whole = table(&[&[1], &[2, 3], &[4]]);
    let part = View::new("part", &whole.offsets[1..], &whole.ids)?;
    assert_eq!((part.len(), part.row(0)), (2, &[2, 3][..]));
    Ok(())
}

#[test]
fn wrong_arrays_are_named() {
    let (prompts, joints) = merging();
    let attempt = |groups: Groups, flags: Option<Unfinished>| {
        split(prompts.view(), joints.view(), groups, flags)
            .unwrap_err()
            .to_string()
    };
    let cases = [
        (
            attempt(groups(&[0], &[0, 1], &[0, 0], &[]), None),
            "group_chosen: expected length 1, got 2",
        ),
        (
            attempt(groups(&[0], &[0], &[0], &[]), None),
            "rejected_offsets: expected length 2, got 1",
        ),
        (
            attempt(groups(&[0], &[0], &[0, 2], &[1]), None),
            "rejected_offsets: expected offsets that never fall",
        ),
        (
            attempt(groups(&[2], &[0], &[0, 0], &[]), None),
            "group_prompt: expected row numbers below 2, got 2",
        ),
        (
            attempt(groups(&[0], &[4], &[0, 0], &[]), None),
            "group_chosen: expected row numbers below 4, got 4",
        ),
        (
            attempt(groups(&[0], &[0], &[0, 1], &[7]), None),
            "rejected: expected row numbers below 4, got 7",
        ),
        (
            attempt(
                groups(&[0], &[0], &[0, 0], &[]),
                Some(Unfinished {
                    joint: &[true],
                    end_ids: &[1],
                }),
            ),
            "unfinished: expected length 4, got 1",
        ),
        (
            attempt(
                groups(&[0], &[0], &[0, 0], &[]),
                Some(Unfinished {
                    joint: &[true; 4],
                    end_ids: &[],
                }),
            ),
            "end_ids: expected the ids that end a turn",
        ),
    ];
    for (message, beginning) in cases {
        assert!(message.starts_with(beginning), "{message}");
    }
    assert_eq!(View::new("t", &[], &[]).unwrap_err(), Error::NoOffsets { name: "t" });
    assert!(matches!(
        View::new("t", &[0, 2, 1], &[1, 2]),
        Err(Error::Offsets { got: 1, place: 2, .. })
    ));
    assert!(matches!(
        View::new("t", &[-1, 0], &[]),
        Err(Error::Offsets { got: -1, place: 0, .. })
    ));
}

#[test]
fn encoding_neither_cuts_nor_pads() -> Result<(), Error> {
    let encoder = Encoder::from_json(TOKENIZER.as_bytes(), Choice::Auto)?;
    let found = encoder.encode(&["a b c d", "", "d"], true)?;
    assert_eq!(rows(&found), [&[1, 2, 3, 4, 5][..], &[1], &[1, 5]]);
    assert_eq!(
        rows(&encoder.encode(&["a b c d", "", "d"], false)?),
        [&[2, 3, 4, 5][..], &[], &[5]]
    );
    assert_eq!(encoder.encode(&[], true)?, Table::new());
    Ok(())
}

#[test]
fn encoding_keeps_the_order_over_many_chunks() -> Result<(), Error> {
    let texts: Vec<String> = (0..1_000).map(|row| "a ".repeat(row % 17) + "b").collect();
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = Encoder::from_json(TOKENIZER.as_bytes(), Choice::Auto)?.encode(&borrowed, false)?;
    assert!(
        rows(&found)
            .iter()
            .enumerate()
            .all(|(row, ids)| ids.len() == row % 17 + 1 && ids[row % 17] == 3)
    );
    Ok(())
}

#[test]
fn a_refused_text_is_named_by_its_row() -> Result<(), Error> {
    let mut texts = vec!["a"; 300];
    (texts[200], texts[250]) = ("unheard", "of");
    let error = Encoder::from_json(TOKENIZER.as_bytes(), Choice::Auto)?
        .encode(&texts, false)
        .unwrap_err();
    assert!(matches!(error, Error::Text { row: 200, .. }), "{error}");
    assert!(matches!(
        Encoder::from_json(b"{", Choice::Auto),
        Err(Error::Tokenizer { got: 1, .. })
    ));
    Ok(())
}
