//! Python's operations for chat templates, where minijinja's are others: filters, tests and functions that do what
//! Python does, and fail, rather than guess, on a value that they do not know. Knows minijinja's values; knows nothing
//! of messages. `mipo.tokenizer.jinja` writes templates with these names.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error as Raised, ErrorKind, functions};

use crate::tokenizer::pytext;

/// The longest range of Jinja2's sandbox.
const RANGE: i64 = 100_000;
/// The longest list that is read; a list times a number is lazy, and may have more items than there is memory.
const ITEMS: usize = 1_000_000;
/// What a rendering may cost: an instruction costs 1, 64 bytes of text 1. What costs more, some tenths of a second or 256
/// MB, is left to transformers.
const FUEL: u64 = 4_000_000;

/// An environment with nothing else in it.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.unwrap_or_default());
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Raised::from),
        None => out.write_str(&printed(value)?).map_err(Raised::from),
    });
    environment.add_function("left", |construct: &str| -> Made { Err(failure(construct.to_owned())) });
    environment.add_function("raise_exception", |message: &Value| -> Made {
        Err(failure(format!("the error {message}")))
    });
    environment.add_function("namespace", functions::namespace);
    environment.add_function("range", range);
    add_tests(&mut environment);
    add_operators(&mut environment);
    add_methods(&mut environment);
    add_filters(&mut environment);
    environment
}

type Made = Result<Value, Raised>;

fn failure(message: String) -> Raised {
    Raised::new(ErrorKind::InvalidOperation, message)
}

fn unexpected<T>(what: &str, value: &Value) -> Result<T, Raised> {
    Err(failure(format!("{what} of {}", value.kind())))
}

fn text(value: &Value) -> Result<&str, Raised> {
    value.as_str().map_or_else(|| unexpected("the text", value), Ok)
}

fn integer(value: &Value) -> Result<i64, Raised> {
    match value.as_i64() {
        Some(number) if value.is_integer() => Ok(number),
        _ => unexpected("the integer", value),
    }
}

/// Python's `str` of a value that is no text.
fn printed(value: &Value) -> Result<String, Raised> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::None => Ok("None".to_owned()),
        ValueKind::Bool => Ok(if value.is_true() { "True" } else { "False" }.to_owned()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        _ => unexpected("the text", value),
    }
}

/// A value as text, as filters of texts take it.
fn soft(value: &Value) -> Made {
    match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => printed(value).map(Value::from),
    }
}

/// The part of a text as a value, without a copy where it is the whole.
fn part(whole: &Value, part: &str) -> Value {
    match whole.as_str() {
        Some(text) if text.len() == part.len() => whole.clone(),
        _ => Value::from(part),
    }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// The items of a list; of a text, its characters.
fn items(value: &Value) -> Result<Vec<Value>, Raised> {
    match value.as_str() {
        Some(text) => Ok(text.chars().map(Value::from).collect()),
        None if is_list(value) => {
            let items: Vec<Value> = value.try_iter()?.take(ITEMS + 1).collect();
            match items.len() {
                0..=ITEMS => Ok(items),
                _ => Err(failure(format!("a list of more than {ITEMS} items"))),
            }
        }
        None => unexpected("the items", value),
    }
}

fn range(bounds: Rest<Value>) -> Made {
    let bounds = bounds.iter().map(integer).collect::<Result<Vec<_>, _>>()?;
    let (start, stop, step) = match bounds[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(failure("such a range".to_owned())),
    };
    let length = match step {
        1 => stop.saturating_sub(start),
        -1 => start.saturating_sub(stop),
        _ => return Err(failure("a range with another step than 1 or -1".to_owned())),
    };
    if length > RANGE {
        return Err(failure(format!("a range of {length}")));
    }
    Ok((0..length).map(|place| start + place * step).collect())
}

fn add_tests(environment: &mut Environment) {
    let mut add = |name: &'static str, test: fn(&Value) -> bool| environment.add_test(name, test);
    add("defined", |v| !v.is_undefined());
    add("undefined", |v| v.is_undefined());
    add("none", |v| v.is_none());
    add("string", |v| v.as_str().is_some());
    add("mapping", |v| v.kind() == ValueKind::Map);
    // What is undefined can be iterated and counted, as nothing.
    let counted = |v: &Value| v.as_str().is_some() || v.is_undefined() || v.kind() == ValueKind::Map || is_list(v);
    add("iterable", counted);
    add("sequence", counted);
    add("number", |v| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    add("integer", |v| v.kind() == ValueKind::Number && v.is_integer());
    add("boolean", |v| v.kind() == ValueKind::Bool);
    add("true", |v| v.kind() == ValueKind::Bool && v.is_true());
    add("false", |v| v.kind() == ValueKind::Bool && !v.is_true());
}

/// An integer, or a truth value, which is one in Python.
fn number(value: &Value) -> Result<i64, Raised> {
    match value.kind() {
        ValueKind::Bool => Ok(value.is_true().into()),
        _ => integer(value),
    }
}

/// What two texts, or two integers, are to each other; Python orders no others that a template of texts has.
fn order(one: &Value, other: &Value) -> Result<std::cmp::Ordering, Raised> {
    match (one.as_str(), other.as_str()) {
        (Some(one), Some(other)) => Ok(one.cmp(other)),
        _ => Ok(number(one)?.cmp(&number(other)?)),
    }
}

fn add_operators(environment: &mut Environment) {
    // minijinja adds lists lazily: a few such sums have more items than there is memory. Here each is made, and paid for.
    environment.add_filter("plus", |a: &Value, b: &Value| -> Made {
        match (a.as_str(), b.as_str()) {
            (Some(one), Some(other)) => Ok(Value::from([one, other].concat())),
            _ if is_list(a) && is_list(b) && !a.is_tuple() && !b.is_tuple() => {
                Ok(Value::from([items(a)?, items(b)?].concat()))
            }
            _ => match number(a)?.checked_add(number(b)?) {
                Some(sum) => Ok(Value::from(sum)),
                None => unexpected("a large sum", a),
            },
        }
    });
    environment.add_filter("lt", |a: &Value, b: &Value| order(a, b).map(|order| order.is_lt()));
    environment.add_filter("le", |a: &Value, b: &Value| order(a, b).map(|order| order.is_le()));
    environment.add_filter("gt", |a: &Value, b: &Value| order(a, b).map(|order| order.is_gt()));
    environment.add_filter("ge", |a: &Value, b: &Value| order(a, b).map(|order| order.is_ge()));
    environment.add_filter("isin", |a: &Value, b: &Value| -> Result<bool, Raised> {
        match b.kind() {
            ValueKind::String => Ok(text(b)?.contains(text(a)?)),
            ValueKind::Map => Ok(!b.get_item(&Value::from(text(a)?))?.is_undefined()),
            ValueKind::Undefined => Ok(false),
            _ if is_list(b) => Ok(items(b)?.contains(a)),
            _ => unexpected("'in'", b),
        }
    });
    environment.add_filter("items", |v: &Value| -> Made {
        match v.kind() {
            ValueKind::Seq => Ok(v.clone()),
            ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
            _ => items(v).map(Value::from),
        }
    });
    environment.add_filter("item", |v: &Value, place: &Value| -> Made {
        if v.is_undefined() || v.kind() == ValueKind::Map {
            let field = v.get_item(&Value::from(text(place)?))?;
            return if field.is_undefined() {
                unexpected("a field", v)
            } else {
                Ok(field)
            };
        }
        let place = integer(place)?;
        let place = if place < 0 { place + length(v)? } else { place };
        match (usize::try_from(place), v.as_str()) {
            (Err(_), _) => Ok(Value::UNDEFINED),
            (Ok(place), Some(text)) => Ok(text.chars().nth(place).map_or(Value::UNDEFINED, Value::from)),
            (Ok(place), None) if is_list(v) => v.get_item_by_index(place),
            _ => unexpected("an item", v),
        }
    });
    environment.add_filter("slice", slice);
}

/// Python's `value[start:stop:step]` for steps of 1 and -1.
fn slice(value: &Value, start: &Value, stop: &Value, step: &Value) -> Made {
    let given = |bound: &Value| {
        if bound.is_none() {
            Ok(None)
        } else {
            integer(bound).map(Some)
        }
    };
    let (start, stop, step) = (given(start)?, given(stop)?, given(step)?);
    let back = match step {
        None | Some(1) => false,
        Some(-1) => true,
        _ => return Err(failure("a slice with another step than 1 or -1".to_owned())),
    };
    if value.is_tuple() {
        return Err(failure("a slice of a tuple".to_owned())); // which would be one, and no list
    }
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

fn length(value: &Value) -> Result<i64, Raised> {
    match value.as_str() {
        Some(text) => Ok(text.chars().count() as i64),
        None if value.is_undefined() => Ok(0),
        None if is_list(value) => value
            .len()
            .map_or_else(|| Ok(items(value)?.len() as i64), |n| Ok(n as i64)),
        None => unexpected("the length", value),
    }
}

/// A method from text to text that is only known for ASCII: Unicode's tables are of different years elsewhere.
fn cased(text: &str, make: impl Fn(&str) -> String) -> Made {
    match text.is_ascii() {
        true => Ok(Value::from(make(text))),
        false => Err(failure("upper or lower case of other letters than ASCII's".to_owned())),
    }
}

fn strip(value: &Value, chars: Option<&Value>, start: bool, end: bool) -> Made {
    let chars = chars.map(text).transpose()?;
    Ok(part(value, pytext::strip(text(value)?, chars, start, end)))
}

fn split(value: &Value, by: Option<&Value>) -> Made {
    let whole = text(value)?;
    match by.map(text).transpose()? {
        Some("") => Err(failure("split by nothing".to_owned())),
        Some(by) => Ok(whole.split(by).map(Value::from).collect()),
        None => {
            let words = whole.split(pytext::is_space).filter(|word| !word.is_empty());
            Ok(words.map(Value::from).collect())
        }
    }
}

fn join(items: Vec<Value>, by: &str, make: fn(&Value) -> Made) -> Made {
    let texts = items.iter().map(make).collect::<Result<Vec<_>, _>>()?;
    let texts = texts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::from(texts.join(by)))
}

/// `only` of at most one argument.
fn at_most_one(args: &Rest<Value>) -> Result<Option<&Value>, Raised> {
    match args.len() {
        0 | 1 => Ok(args.first()),
        more => Err(failure(format!("a method with {more} arguments"))),
    }
}

/// Methods of `str`, and `dict.get`: they fail on all that is no text, as Python does.
fn add_methods(environment: &mut Environment) {
    environment.add_filter("str_strip", |v: &Value, chars: Rest<Value>| {
        strip(v, at_most_one(&chars)?, true, true)
    });
    environment.add_filter("str_lstrip", |v: &Value, chars: Rest<Value>| {
        strip(v, at_most_one(&chars)?, true, false)
    });
    environment.add_filter("str_rstrip", |v: &Value, chars: Rest<Value>| {
        strip(v, at_most_one(&chars)?, false, true)
    });
    environment.add_filter("str_split", |v: &Value, by: Rest<Value>| split(v, at_most_one(&by)?));
    environment.add_filter("str_startswith", |v: &Value, start: &Value| -> Result<bool, Raised> {
        Ok(text(v)?.starts_with(text(start)?))
    });
    environment.add_filter("str_endswith", |v: &Value, end: &Value| -> Result<bool, Raised> {
        Ok(text(v)?.ends_with(text(end)?))
    });
    environment.add_filter("str_upper", |v: &Value| cased(text(v)?, str::to_ascii_uppercase));
    environment.add_filter("str_lower", |v: &Value| cased(text(v)?, str::to_ascii_lowercase));
    environment.add_filter("str_title", |v: &Value| cased(text(v)?, pytext::title));
    environment.add_filter("str_capitalize", |v: &Value| cased(text(v)?, pytext::capitalize));
    environment.add_filter("str_replace", |v: &Value, old: &Value, new: &Value| -> Made {
        Ok(Value::from(text(v)?.replace(text(old)?, text(new)?)))
    });
    environment.add_filter("str_find", |v: &Value, part: &Value| -> Result<i64, Raised> {
        Ok(pytext::find(text(v)?, text(part)?))
    });
    environment.add_filter("str_count", |v: &Value, part: &Value| -> Result<i64, Raised> {
        Ok(pytext::count(text(v)?, text(part)?))
    });
    environment.add_filter("str_removeprefix", |v: &Value, start: &Value| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.strip_prefix(text(start)?).unwrap_or(whole)))
    });
    environment.add_filter("str_removesuffix", |v: &Value, end: &Value| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.strip_suffix(text(end)?).unwrap_or(whole)))
    });
    environment.add_filter("str_join", |by: &Value, v: &Value| {
        join(items(v)?, text(by)?, |item| text(item).map(|_| item.clone()))
    });
    environment.add_filter("str_get", |v: &Value, field: &Value, other: Rest<Value>| -> Made {
        if v.kind() != ValueKind::Map {
            return unexpected("the method 'get'", v);
        }
        let value = v.get_item(&Value::from(text(field)?))?;
        let other = || Ok(at_most_one(&other)?.cloned().unwrap_or(Value::from(())));
        if value.is_undefined() { other() } else { Ok(value) }
    });
}

/// Filters of Jinja2, which first make text of what is none.
fn add_filters(environment: &mut Environment) {
    environment.add_filter("string", soft);
    // What Python adds to a text, or raises.
    environment.add_filter("text", |v: &Value| text(v).map(|_| v.clone()));
    environment.add_filter("trim", |v: &Value, chars: Rest<Value>| {
        strip(&soft(v)?, at_most_one(&chars)?, true, true)
    });
    environment.add_filter("upper", |v: &Value| cased(text(&soft(v)?)?, str::to_ascii_uppercase));
    environment.add_filter("lower", |v: &Value| cased(text(&soft(v)?)?, str::to_ascii_lowercase));
    environment.add_filter("capitalize", |v: &Value| cased(text(&soft(v)?)?, pytext::capitalize));
    environment.add_filter("replace", |v: &Value, old: &Value, new: &Value| -> Made {
        Ok(Value::from(text(&soft(v)?)?.replace(text(old)?, text(new)?)))
    });
    environment.add_filter("tojson", |v: &Value| -> Made {
        match v.kind() {
            ValueKind::String => Ok(Value::from(pytext::json(text(v)?))),
            ValueKind::None => Ok(Value::from("null")),
            ValueKind::Bool => Ok(Value::from(if v.is_true() { "true" } else { "false" })),
            ValueKind::Number if v.is_integer() => soft(v),
            _ => unexpected("the filter 'tojson'", v),
        }
    });
    environment.add_filter("default", |v: &Value, args: Rest<Value>| -> Made {
        let falsy = args.get(1).is_some_and(Value::is_true);
        match v.is_undefined() || (falsy && !v.is_true()) {
            true => Ok(args.first().cloned().unwrap_or(Value::from(""))),
            false => Ok(v.clone()),
        }
    });
    environment.add_filter("length", length);
    environment.add_filter("list", |v: &Value| items(v).map(Value::from));
    environment.add_filter("first", |v: &Value| -> Made {
        Ok(items(v)?.first().cloned().unwrap_or_default())
    });
    environment.add_filter("last", |v: &Value| -> Made {
        Ok(items(v)?.last().cloned().unwrap_or_default())
    });
    environment.add_filter("join", |v: &Value, by: Rest<Value>| {
        let by = at_most_one(&by)?.map(text).transpose()?;
        join(items(v)?, by.unwrap_or(""), soft)
    });
    environment.add_filter("map", |v: &Value, field: &Value| -> Made {
        let fields = items(v)?.into_iter().map(|item| attribute(&item, field));
        Ok(Value::from(fields.collect::<Result<Vec<_>, _>>()?))
    });
    environment.add_filter("selectattr", |v: &Value, args: Rest<Value>| selected(v, &args, true));
    environment.add_filter("rejectattr", |v: &Value, args: Rest<Value>| selected(v, &args, false));
}

/// The field of a message.
fn attribute(item: &Value, field: &Value) -> Made {
    match item.kind() {
        ValueKind::Map if !text(field)?.contains('.') => item.get_attr(text(field)?),
        _ => unexpected("an attribute", item),
    }
}

fn selected(value: &Value, args: &[Value], keep: bool) -> Made {
    let [field, test, wanted] = args else {
        return Err(failure("selectattr or rejectattr with such arguments".to_owned()));
    };
    if !matches!(test.as_str(), Some("equalto" | "eq" | "==")) {
        return Err(failure("selectattr or rejectattr with such a test".to_owned()));
    }
    let mut kept = Vec::new();
    for item in items(value)? {
        if (attribute(&item, field)? == *wanted) == keep {
            kept.push(item);
        }
    }
    Ok(Value::from(kept))
}
