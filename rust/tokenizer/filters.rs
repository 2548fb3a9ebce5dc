//! Filters and functions of the normal form of chat templates, which do what Python does, and fail, rather than guess, on
//! a value that they do not know. Knows minijinja's values; knows nothing of messages.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error as Raised, ErrorKind, functions};

use crate::tokenizer::pytext;

/// What the message of an error begins with that is none of the template's own.
pub(crate) const LEFT: &str = "left to transformers: ";

/// An environment with nothing else in it.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    // Only text is put out: whatever else arrives here would have raised in Python, or was not foreseen.
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Raised::from),
        None => Err(failure(format!("expected text to put out, got {}", value.kind()))),
    });
    environment.add_function("namespace", functions::namespace);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Raised> {
        Err(failure(message.to_owned()))
    });
    environment.add_function("py_range", |start: i64, stop: i64, step: Option<i64>| -> Vec<i64> {
        match step {
            Some(-1) => (stop.saturating_add(1)..=start).rev().collect(),
            _ => (start..stop).collect(),
        }
    });
    environment.add_test("of", |value: &Value, kinds: &str| {
        kinds.split(' ').any(|kind| kind == kind_of(value))
    });
    add_filters(&mut environment);
    environment
}

fn failure(message: String) -> Raised {
    Raised::new(ErrorKind::InvalidOperation, message)
}

/// What `mipo.kinds` calls a value's kind; of lists, the one that stands for all.
fn kind_of(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "undefined",
        ValueKind::None => "none",
        ValueKind::Bool => "boolean",
        ValueKind::Number => "integer",
        ValueKind::String => "string",
        ValueKind::Map => "message",
        _ => "messages",
    }
}

fn text(value: &Value) -> Result<&str, Raised> {
    value
        .as_str()
        .ok_or_else(|| failure(format!("expected text, got {}", value.kind())))
}

/// The part of a text as a value, without a copy where it is the whole.
fn part(whole: &Value, part: &str) -> Value {
    match whole.as_str() {
        Some(text) if text.len() == part.len() => whole.clone(),
        _ => Value::from(part),
    }
}

/// A method from text to text that is only known for ASCII: Unicode's tables are of different years elsewhere.
fn cased(value: &Value, make: impl Fn(&str) -> String) -> Result<String, Raised> {
    let text = text(value)?;
    if text.is_ascii() {
        Ok(make(text))
    } else {
        Err(failure(format!(
            "{LEFT}upper or lower case of other letters than ASCII's"
        )))
    }
}

type Made = Result<Value, Raised>;

fn strip(value: &Value, chars: Option<&str>, start: bool, end: bool) -> Made {
    Ok(part(value, pytext::strip(text(value)?, chars, start, end)))
}

fn add_filters(environment: &mut Environment) {
    environment.add_filter("soft", |value: &Value| -> Made {
        match kind_of(value) {
            "undefined" => Ok(Value::from("")),
            "none" => Ok(Value::from("None")),
            "boolean" => Ok(Value::from(if value.is_true() { "True" } else { "False" })),
            "string" => Ok(value.clone()),
            "integer" => Ok(Value::from(value.to_string())),
            kind => Err(failure(format!("expected text, got {kind}"))),
        }
    });
    environment.add_filter("py_strip", |v: &Value, chars: Option<&str>| strip(v, chars, true, true));
    environment.add_filter("py_lstrip", |v: &Value, chars: Option<&str>| {
        strip(v, chars, true, false)
    });
    environment.add_filter("py_rstrip", |v: &Value, chars: Option<&str>| {
        strip(v, chars, false, true)
    });
    environment.add_filter("py_replace", |v: &Value, old: &str, new: &str| -> Made {
        Ok(Value::from(text(v)?.replace(old, new)))
    });
    environment.add_filter("py_upper", |v: &Value| cased(v, str::to_ascii_uppercase));
    environment.add_filter("py_lower", |v: &Value| cased(v, str::to_ascii_lowercase));
    environment.add_filter("py_capitalize", |v: &Value| cased(v, pytext::capitalize));
    environment.add_filter("py_title", |v: &Value| cased(v, pytext::title));
    environment.add_filter("py_removeprefix", |v: &Value, start: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.strip_prefix(start).unwrap_or(whole)))
    });
    environment.add_filter("py_removesuffix", |v: &Value, end: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.strip_suffix(end).unwrap_or(whole)))
    });
    environment.add_filter("py_startswith", |v: &Value, start: &str| -> Made {
        Ok(text(v)?.starts_with(start).into())
    });
    environment.add_filter("py_endswith", |v: &Value, end: &str| -> Made {
        Ok(text(v)?.ends_with(end).into())
    });
    environment.add_filter("py_contains", |v: &Value, part: &str| -> Made {
        Ok(text(v)?.contains(part).into())
    });
    environment.add_filter("py_find", |v: &Value, part: &str| -> Made {
        Ok(pytext::find(text(v)?, part).into())
    });
    environment.add_filter("py_count", |v: &Value, part: &str| -> Made {
        Ok(pytext::count(text(v)?, part).into())
    });
    environment.add_filter("py_times", |v: &Value, times: i64| -> Made {
        Ok(Value::from(text(v)?.repeat(times.max(0) as usize)))
    });
    environment.add_filter("py_json", |v: &Value| -> Made {
        match kind_of(v) {
            "string" => Ok(Value::from(pytext::json(text(v)?))),
            "boolean" => Ok(Value::from(if v.is_true() { "true" } else { "false" })),
            "integer" => Ok(Value::from(v.to_string())),
            "none" => Ok(Value::from("null")),
            kind => Err(failure(format!("expected text for tojson, got {kind}"))),
        }
    });
    environment.add_filter("py_split", |v: &Value, by: Option<&str>| -> Made {
        let text = text(v)?;
        Ok(match by {
            Some(by) => text.split(by).map(Value::from).collect(),
            None => text
                .split(pytext::is_space)
                .filter(|part| !part.is_empty())
                .map(Value::from)
                .collect(),
        })
    });
    environment.add_filter("py_first", |v: &Value, by: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.split_once(by).map_or(whole, |(first, _)| first)))
    });
    // From the left, as Python splits: of overlapping separators the first one counts.
    environment.add_filter("py_last", |v: &Value, by: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.split(by).last().unwrap_or(whole)))
    });
    environment.add_filter("py_default", |v: &Value, other: &Value, falsy: bool| -> Value {
        if v.is_undefined() || (falsy && !v.is_true()) {
            other.clone()
        } else {
            v.clone()
        }
    });
    add_filters_of_lists(environment);
}

fn add_filters_of_lists(environment: &mut Environment) {
    environment.add_filter("py_length", |v: &Value| -> Result<i64, Raised> {
        match v.as_str() {
            Some(text) => Ok(text.chars().count() as i64),
            None if v.is_undefined() => Ok(0),
            None => Ok(items(v)?.len() as i64),
        }
    });
    environment.add_filter("at", |v: &Value, place: i64| -> Made {
        let length = || Ok::<_, Raised>(items(v)?.len() as i64);
        let place = if place < 0 { place + length()? } else { place };
        nth(v, place)
    });
    environment.add_filter("nth", nth);
    environment.add_filter("py_slice", slice);
    environment.add_filter("py_join", |v: &Value, by: &str| -> Made {
        let items = items(v)?;
        let texts = items.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        Ok(Value::from(texts.join(by)))
    });
    environment.add_filter("py_map", |v: &Value, field: &str| -> Made {
        items(v)?
            .iter()
            .map(|item| item.get_attr(field))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::from)
    });
    environment.add_filter(
        "py_select",
        |v: &Value, field: &str, value: &Value, keep: bool| -> Made {
            let mut kept = items(v)?;
            kept.retain(|item| (item.get_attr(field).ok().as_ref() == Some(value)) == keep);
            Ok(Value::from(kept))
        },
    );
}

/// The items of a list; of a text, its characters.
fn items(value: &Value) -> Result<Vec<Value>, Raised> {
    match value.as_str() {
        Some(text) => Ok(text.chars().map(Value::from).collect()),
        None => Ok(value.try_iter()?.collect()),
    }
}

/// The item at a place counted from 0, undefined outside.
fn nth(value: &Value, place: i64) -> Made {
    let Ok(place) = usize::try_from(place) else {
        return Ok(Value::UNDEFINED);
    };
    match value.as_str() {
        Some(text) => Ok(text.chars().nth(place).map_or(Value::UNDEFINED, Value::from)),
        None => value.get_item_by_index(place),
    }
}

/// Python's `value[start:stop:step]` for steps of 1 and -1.
fn slice(value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Made {
    let back = step == Some(-1);
    let mut items = items(value)?;
    let length = items.len() as i64;
    let (least, most) = if back { (-1, length - 1) } else { (0, length) };
    let bound = |place: i64| (if place < 0 { place + length } else { place }).clamp(least, most);
    let start = start.map_or(if back { most } else { least }, bound);
    let stop = stop.map_or(if back { least } else { most }, bound);
    let (from, to) = if back { (stop + 1, start + 1) } else { (start, stop) };
    let mut items: Vec<Value> = items.drain(from as usize..to.max(from) as usize).collect();
    if back {
        items.reverse();
    }
    if value.as_str().is_some() {
        return Ok(Value::from(items.iter().filter_map(Value::as_str).collect::<String>()));
    }
    Ok(Value::from(items))
}
