//! What groups are refused with: texts by their row, arrays by their name.

use std::borrow::Cow;

use mipo::error::Error;
use mipo::tokens::{Groups, Interner, Rendered, Response, Texts, Truncated};

use crate::tokens::data::{Arrays, Group, encoder, rows};

#[test]
fn an_error_names_the_first_row_and_stores_nothing() -> Result<(), Error> {
    let (encoder, mut interner) = (encoder(), Interner::default());
    let good: Group = ("1", "1 2", &["1 3"]);
    for (bad, row) in [
        (("what", "1 2", &["1 3"][..]), 1_300),
        (("1", "1 what", &["1 3"]), 1_300),
        (("1", "1 2", &["1 3", "1 what"]), 1_300),
    ] {
        let mut groups = vec![good; 900];
        let worse: Group = ("no", "1", &[]);
        (groups[300], groups[301], groups[850]) = (bad, worse, worse);
        let arrays = Arrays::new(&groups);
        let error = interner
            .push(&encoder, &arrays.texts, arrays.groups(), None)
            .unwrap_err();
        assert!(
            matches!(error, Error::EncodeGroup { row: got, .. } if got == row),
            "{error}"
        );
        assert!(error.to_string().starts_with("row 1300: "), "{error}");
    }
    let arrays = Arrays::new(&[good]);
    assert_eq!(
        interner.push(&encoder, &arrays.texts, arrays.groups(), None)?.chosen,
        [0]
    );
    assert_eq!(rows(&interner.take_responses()), [[2], [3]]);
    Ok(())
}

/// A template that refuses one prompt.
struct Refusing;

impl Texts for Refusing {
    fn sizes(&self) -> [usize; 3] {
        [2, 2, 0]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        if group == 1 {
            Err("roles must alternate".into())
        } else {
            Ok("1".into())
        }
    }

    fn joint(&self, _: usize, _: Response) -> Result<Cow<'_, str>, String> {
        Ok("1 2".into())
    }
}

#[test]
fn a_refusal_of_the_template_has_its_message() {
    let arrays = Arrays::new(&[("", "", &[]), ("", "", &[])]);
    let error = Interner::default()
        .push(&encoder(), &Refusing, arrays.groups(), None)
        .unwrap_err();
    assert_eq!(error.to_string(), "row 1001: roles must alternate");
}

#[test]
fn wrong_arrays_are_named() {
    let arrays = Arrays::new(&[("1", "1 2", &["1 3"]), ("1", "1 2", &["1 3"])]);
    let right = arrays.groups();
    let flags = |chosen, rejected| Truncated {
        chosen,
        rejected,
        end_ids: &[],
    };
    let cases = [
        (
            Groups { offsets: &[], ..right },
            "offsets: expected one offset more than there are rows",
        ),
        (
            Groups {
                offsets: &[0, 2, 1],
                ..right
            },
            "offsets: expected offsets that never fall",
        ),
        (
            Groups {
                offsets: &[-1, 1, 2],
                ..right
            },
            "offsets: expected offsets that never fall",
        ),
        (
            Groups {
                offsets: &[0, 1, 3],
                ..right
            },
            "offsets: expected offsets that never fall, from 0 to at most 2",
        ),
        (
            Groups {
                offsets: &[0, 2],
                ..right
            },
            "prompts: expected length 1, got 2",
        ),
        (
            Groups {
                offsets: &[0, 1, 1],
                ..right
            },
            "rejected: expected length 1, got 2",
        ),
        (Groups { rows: &[1], ..right }, "rows: expected length 2, got 1"),
        (
            Groups {
                truncated: flags(&[true], &[true, true]),
                ..right
            },
            "truncated chosen: expected length 2, got 1",
        ),
        (
            Groups {
                truncated: flags(&[true, true], &[]),
                ..right
            },
            "truncated rejected: expected length 2, got 0",
        ),
    ];
    for (groups, beginning) in cases {
        let error = Interner::default()
            .push(&encoder(), &arrays.texts, groups, None)
            .unwrap_err();
        assert!(error.to_string().starts_with(beginning), "{error}");
    }
    let texts = Rendered {
        chosen: vec!["1"],
        ..Arrays::new(&[("1", "1 2", &["1 3"]), ("1", "1 2", &["1 3"])]).texts
    };
    let error = Interner::default().push(&encoder(), &texts, right, None).unwrap_err();
    assert!(
        error.to_string().starts_with("chosen: expected length 2, got 1"),
        "{error}"
    );
}
