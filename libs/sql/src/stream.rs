//! `CREATE STREAM`.

use std::fmt::Write;

use headwater_types::{Column, DataType, StreamDefinition};
use sqlparser::{
    ast::Ident,
    tokenizer::{Location, Token},
};

use crate::{
    duration,
    lexer::{Cursor, Result, refuse},
    options::{self, Options},
    suggest, types,
};

/// The default number of partitions: enough for a few cores, cheap when idle.
pub(crate) const DEFAULT_PARTITIONS: u32 = 4;
const MOST_PARTITIONS: u32 = 4_096;
const MOST_COLUMNS: usize = 1_000;
/// The default of `max_future`: more than the error of any time zone mistaken for another.
const DEFAULT_MAX_FUTURE_MICROS: i64 = 24 * 3_600 * 1_000_000;

const OPTIONS: &[&str] = &["topic", "format", "key", "partitions", "max_future"];
/// The names of a window's columns, which no stream may use.
const RESERVED: [&str; 3] = headwater_engine::plan::WINDOW_COLUMNS;

/// A column and the position of its declaration.
struct Declared {
    column: Column,
    at: Location,
    /// The position of an explicit `NULL`.
    nullable_at: Option<Location>,
}

struct Watermark {
    column: Ident,
    delay_micros: i64,
}

/// Reads the statement after `CREATE STREAM`.
pub(crate) fn read(cursor: &mut Cursor) -> Result<StreamDefinition> {
    let form = "write CREATE STREAM name (column TYPE, …, WATERMARK FOR time AS time - INTERVAL '5 seconds')";
    let name = options::named(&cursor.identifier("the name of the stream", form)?, "stream")?;
    let list_at = cursor.location();
    cursor.expect(&Token::LParen, form)?;
    let mut declared: Vec<Declared> = Vec::new();
    let mut watermark = None;
    loop {
        if cursor.is_word("WATERMARK") && cursor.is_word_at(1, "FOR") {
            let at = cursor.location();
            if watermark.replace(read_watermark(cursor)?).is_some() {
                return refuse(
                    at,
                    "a stream has one watermark, and this is the second",
                    "keep one of the two",
                );
            }
        } else {
            let column = read_column(cursor)?;
            let name = &column.column.name;
            if declared.iter().any(|other| other.column.name == *name) {
                return refuse(
                    column.at,
                    format!("column {name} is declared twice"),
                    "keep one of the two",
                );
            }
            declared.push(column);
            if declared.len() > MOST_COLUMNS {
                return refuse(
                    list_at,
                    format!("more than {MOST_COLUMNS} columns"),
                    "declare only what views need; other fields are passed over",
                );
            }
        }
        if cursor.eat(&Token::RParen) {
            break;
        }
        cursor.expect(&Token::Comma, "separate columns with commas and close the list with ')'")?;
    }
    let mut options = match cursor.eat_word("WITH") {
        true => Options::read(cursor, OPTIONS)?,
        false => Options::none(OPTIONS),
    };
    if !cursor.is_end() {
        return cursor
            .unexpected("WITH (…) or the end of the statement", "end the statement with ';'");
    }
    let Some(watermark) = watermark else {
        let time =
            declared.iter().find(|declared| declared.column.data_type == DataType::Timestamp);
        let time = time.map_or("ts", |declared| &declared.column.name);
        let instead =
            format!("add WATERMARK FOR {time} AS {time} - INTERVAL '5 seconds' to the columns");
        return refuse(
            list_at,
            format!("stream {name} does not say which column is its event time"),
            instead,
        );
    };
    let event_time = event_time(&watermark, &mut declared)?;
    let key = key(&mut options, &mut declared)?;
    let mut definition = StreamDefinition {
        columns: declared.into_iter().map(|declared| declared.column).collect(),
        event_time,
        watermark_delay_micros: watermark.delay_micros,
        topic: name.clone(),
        partitions: DEFAULT_PARTITIONS,
        key,
        max_future_micros: DEFAULT_MAX_FUTURE_MICROS,
        sql: String::new(),
        name,
    };
    if let Some(topic) = options.take("topic") {
        definition.topic = options::name(&topic.text, topic.at, "topic")?;
    }
    if let Some(format) = options.take("format")
        && !format.text.eq_ignore_ascii_case("json")
    {
        return refuse(
            format.at,
            format!("format '{}' is not supported", format.text),
            "write format = 'json'",
        );
    }
    if let Some(partitions) = options.take("partitions") {
        definition.partitions = match partitions.text.parse() {
            Ok(count @ 1..=MOST_PARTITIONS) => count,
            _ => {
                let reason = format!("'{}' is not a number of partitions", partitions.text);
                return refuse(
                    partitions.at,
                    reason,
                    format!("write a number from 1 to {MOST_PARTITIONS}"),
                );
            }
        };
    }
    if let Some((micros, _)) = options.take_duration("max_future", 1)? {
        definition.max_future_micros = micros;
    }
    options.finish()?;
    definition.sql = normal_form(&definition);
    Ok(definition)
}

fn read_column(cursor: &mut Cursor) -> Result<Declared> {
    let form = "write a column as name TYPE [NULL | NOT NULL]";
    let at = cursor.location();
    if matches!(cursor.peek(), Token::RParen | Token::Comma) {
        return cursor.unexpected("a column", form);
    }
    let ident = cursor.identifier("the name of a column", form)?;
    if RESERVED.contains(&&*ident.value) {
        let reason = format!("{} is what a window calls its own column", ident.value);
        return refuse(at, reason, "give the column another name");
    }
    let type_at = cursor.location();
    let sql_type = cursor.take_until(|cursor| {
        matches!(cursor.peek(), Token::Comma | Token::RParen)
            || cursor.is_word("NULL")
            || cursor.is_word("NOT")
    });
    if sql_type.is_end() {
        return cursor.unexpected(&format!("the type of column {ident}"), form);
    }
    let sql_type = sql_type
        .parse("the type of a column; a column is name TYPE [NULL | NOT NULL]", |parser| {
            parser.parse_data_type()
        })?;
    let data_type = types::data_type(&sql_type, type_at)?;
    let null_at = cursor.location();
    let (nullable, nullable_at) = if cursor.eat_word("NOT") {
        cursor.expect_word("NULL", form)?;
        (false, None)
    } else {
        (true, cursor.eat_word("NULL").then_some(null_at))
    };
    Ok(Declared { column: Column { name: ident.value, data_type, nullable }, at, nullable_at })
}

/// `WATERMARK FOR ts AS ts [- INTERVAL '…']`.
fn read_watermark(cursor: &mut Cursor) -> Result<Watermark> {
    let form = "write WATERMARK FOR time AS time - INTERVAL '5 seconds'";
    cursor.expect_word("WATERMARK", form)?;
    cursor.expect_word("FOR", form)?;
    let column = cursor.identifier("the event-time column", form)?;
    cursor.expect_word("AS", form)?;
    let at = cursor.location();
    let same = cursor.identifier("the event-time column again", form)?;
    if same.value != column.value {
        let reason = format!("the watermark of {column} is computed from {same}");
        return refuse(
            at,
            reason,
            format!("write WATERMARK FOR {column} AS {column} - INTERVAL '5 seconds'"),
        );
    }
    let at = cursor.location();
    if cursor.eat(&Token::Plus) {
        let reason = "a watermark ahead of its event time would make every event late";
        return refuse(at, reason, form);
    }
    let mut delay_micros = 0;
    if cursor.eat(&Token::Minus) {
        let at = cursor.location();
        delay_micros = options::micros(&options::interval(cursor)?, at)?;
        if delay_micros < 0 {
            let reason = "a watermark ahead of its event time would make every event late";
            return refuse(at, reason, "write an interval of zero or more");
        }
    }
    if !matches!(cursor.peek(), Token::Comma | Token::RParen) {
        return cursor.unexpected("',' or ')' behind the watermark", form);
    }
    Ok(Watermark { column, delay_micros })
}

/// Finds the event-time column and makes it NOT NULL.
fn event_time(watermark: &Watermark, declared: &mut [Declared]) -> Result<usize> {
    let name = &watermark.column.value;
    let at = watermark.column.span.start;
    let place = declared.iter().position(|declared| declared.column.name == *name);
    let Some(found) = place.and_then(|place| declared.get_mut(place)) else {
        let names: Vec<&str> = declared.iter().map(|declared| &*declared.column.name).collect();
        return refuse(
            at,
            format!("there is no column {name} for the watermark"),
            suggest::or_list(name, names),
        );
    };
    if found.column.data_type != DataType::Timestamp {
        let reason = format!("the event time {name} is {}", found.column.data_type);
        return refuse(
            found.at,
            reason,
            format!("declare {name} TIMESTAMP, or write WATERMARK FOR another column"),
        );
    }
    never_null(found, "the event time")?;
    Ok(place.unwrap_or_default())
}

/// Finds the column by which records are partitioned and makes it NOT NULL.
fn key(options: &mut Options, declared: &mut [Declared]) -> Result<Option<usize>> {
    let Some(setting) = options.take("key") else { return Ok(None) };
    // If no column has the exact name in quotes, the name is folded like an unquoted identifier.
    let exact = declared.iter().position(|declared| declared.column.name == setting.text);
    let folded = setting.text.to_ascii_lowercase();
    let place =
        exact.or_else(|| declared.iter().position(|declared| declared.column.name == folded));
    let Some(found) = place.and_then(|place| declared.get_mut(place)) else {
        let names: Vec<&str> = declared.iter().map(|declared| &*declared.column.name).collect();
        let reason = format!("the key {} is not a column", setting.text);
        return refuse(setting.at, reason, suggest::or_list(&setting.text, names));
    };
    // Each value must have one text. Otherwise equal keys would go to different partitions.
    if !matches!(found.column.data_type, DataType::Varchar | DataType::Integer | DataType::BigInt) {
        let reason = format!("the key {} is {}", found.column.name, found.column.data_type);
        return refuse(setting.at, reason, "name a column that is VARCHAR, INTEGER or BIGINT");
    }
    never_null(found, "the key")?;
    Ok(place)
}

fn never_null(declared: &mut Declared, what: &str) -> Result<()> {
    if let Some(at) = declared.nullable_at {
        let reason = format!("{what} {} can never be NULL", declared.column.name);
        return refuse(at, reason, "leave NULL out, or write NOT NULL");
    }
    declared.column.nullable = false;
    Ok(())
}

/// The normal form: every default, in one order, with one spelling.
fn normal_form(stream: &StreamDefinition) -> String {
    let mut sql = format!("CREATE STREAM {} (\n", quoted(stream.name.as_str()));
    for column in &stream.columns {
        let null = if column.nullable { "" } else { " NOT NULL" };
        let _ = writeln!(sql, "  {} {}{null},", quoted(&column.name), column.data_type);
    }
    let time = quoted(&stream.columns[stream.event_time].name);
    let _ = write!(sql, "  WATERMARK FOR {time} AS {time}");
    if stream.watermark_delay_micros > 0 {
        let _ = write!(sql, " - INTERVAL '{}'", duration::print(stream.watermark_delay_micros));
    }
    let _ = write!(sql, "\n) WITH (topic = '{}', format = 'json'", stream.topic);
    if let Some(key) = stream.key {
        let _ = write!(sql, ", key = '{}'", stream.columns[key].name.replace('\'', "''"));
    }
    let max_future = duration::print(stream.max_future_micros);
    let _ = write!(sql, ", partitions = {}, max_future = '{max_future}')", stream.partitions);
    sql
}

/// An identifier, quoted if it needs quotes to be read back unchanged.
pub(crate) fn quoted(name: &str) -> String {
    crate::lexer::fold(Ident::with_quote('"', name)).to_string()
}

#[cfg(test)]
mod tests;
