//! Prints rows for people and for programs.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use headwater_proto::common::v1::{Column, Value, value::Kind};
use headwater_types::EventTime;
use serde_json::Value as Json;

use crate::{cli::Output, failure::Result};

/// The text of a value in a table.
pub fn text(value: &Value) -> String {
    match &value.kind {
        None => String::new(),
        Some(Kind::Boolean(b)) => b.to_string(),
        Some(Kind::Integer(n)) => n.to_string(),
        Some(Kind::Double(x)) => double(*x),
        Some(Kind::Text(text) | Kind::Decimal(text)) => text.clone(),
        Some(Kind::TimestampMicros(micros)) => EventTime(*micros).to_string(),
    }
}

/// The shortest text that reads back as the same double.
fn double(x: f64) -> String {
    serde_json::Number::from_f64(x).map_or_else(|| x.to_string(), |number| number.to_string())
}

/// Appends a value as JSON. A DECIMAL is a number with all its digits.
fn json(value: &Value, out: &mut String) {
    match &value.kind {
        None => out.push_str("null"),
        Some(Kind::Text(text)) => out.push_str(&Json::from(text.as_str()).to_string()),
        Some(Kind::TimestampMicros(_)) => out.push_str(&Json::from(text(value)).to_string()),
        Some(Kind::Double(x)) if !x.is_finite() => {
            out.push_str(&Json::from(x.to_string()).to_string())
        }
        Some(Kind::Boolean(_) | Kind::Integer(_) | Kind::Double(_) | Kind::Decimal(_)) => {
            out.push_str(&text(value))
        }
    }
}

fn csv(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Prints rows of one shape as they arrive. A table is printed at the end, when its widths are
/// known.
pub struct Rows {
    output: Output,
    columns: Vec<Column>,
    table: Table,
    out: BufWriter<StdoutLock<'static>>,
    line: String,
    rows: u64,
}

impl Rows {
    pub fn new(output: Output, columns: Vec<Column>) -> Result<Self> {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut table = new_table(columns.iter().map(|column| column.name.as_str()));
        for (index, column) in columns.iter().enumerate() {
            let number =
                !matches!(column.sql_type.as_str(), "VARCHAR" | "TIMESTAMP" | "BOOLEAN" | "");
            if let (true, Some(cells)) = (number, table.column_mut(index)) {
                cells.set_cell_alignment(CellAlignment::Right);
            }
        }
        match output {
            Output::Csv => {
                let header: Vec<_> = columns.iter().map(|column| csv(&column.name)).collect();
                writeln!(out, "{}", header.join(","))?;
            }
            Output::Json => write!(out, "[")?,
            Output::Table | Output::Ndjson => {}
        }
        Ok(Self { output, columns, table, out, line: String::new(), rows: 0 })
    }

    pub fn push(&mut self, values: &[Value]) -> Result {
        self.rows += 1;
        match self.output {
            Output::Table => {
                self.table.add_row(values.iter().map(text));
                return Ok(());
            }
            Output::Csv => {
                let cells: Vec<_> = values.iter().map(|value| csv(&text(value))).collect();
                writeln!(self.out, "{}", cells.join(","))?;
                return Ok(());
            }
            Output::Json | Output::Ndjson => {}
        }
        self.line.clear();
        self.line.push('{');
        for (index, (column, value)) in self.columns.iter().zip(values).enumerate() {
            if index > 0 {
                self.line.push(',');
            }
            self.line.push_str(&Json::from(column.name.as_str()).to_string());
            self.line.push(':');
            json(value, &mut self.line);
        }
        self.line.push('}');
        if self.output == Output::Json {
            write!(self.out, "{}\n  {}", if self.rows == 1 { "" } else { "," }, self.line)?;
        } else {
            writeln!(self.out, "{}", self.line)?;
        }
        Ok(())
    }

    /// Writes out the rows so far, for a reader that follows.
    pub fn flush(&mut self) -> Result {
        Ok(self.out.flush()?)
    }

    pub fn finish(mut self) -> Result<u64> {
        match self.output {
            Output::Table => writeln!(self.out, "{}", self.table)?,
            Output::Json => writeln!(self.out, "\n]")?,
            Output::Ndjson | Output::Csv => {}
        }
        self.out.flush()?;
        Ok(self.rows)
    }
}

/// Prints JSON objects of one shape: as they are for programs, as a table for people.
pub fn objects(output: Output, columns: &[&str], objects: &[Json]) -> Result {
    let mut out = io::stdout().lock();
    let cell = |object: &Json, column: &str| match object.get(column) {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    match output {
        Output::Json => writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(objects).map_err(anyhow::Error::from)?
        )?,
        Output::Ndjson => {
            for object in objects {
                writeln!(out, "{object}")?;
            }
        }
        Output::Csv => {
            writeln!(out, "{}", columns.join(","))?;
            for object in objects {
                let cells: Vec<_> =
                    columns.iter().map(|column| csv(&cell(object, column))).collect();
                writeln!(out, "{}", cells.join(","))?;
            }
        }
        Output::Table => {
            let mut table = new_table(columns.iter().copied());
            for (index, column) in columns.iter().enumerate() {
                let numbers = objects
                    .iter()
                    .all(|o| o.get(column).is_none_or(|v| v.is_number() || v.is_null()));
                if let (true, Some(cells)) =
                    (numbers && !objects.is_empty(), table.column_mut(index))
                {
                    cells.set_cell_alignment(CellAlignment::Right);
                }
            }
            for object in objects {
                table.add_row(columns.iter().map(|column| cell(object, column)));
            }
            writeln!(out, "{table}")?;
        }
    }
    Ok(())
}

/// A table in the style that all tables have. Cells are wrapped on a terminal only.
pub fn new_table<'a>(header: impl Iterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header);
    table
}

/// 27004 as 27,004.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    #[test]
    fn a_program_gets_integers_as_numbers_and_timestamps_as_rfc_3339() {
        let cases = [
            (Value { kind: None }, "null"),
            (value(Kind::Integer(i64::MIN)), "-9223372036854775808"),
            (value(Kind::Double(0.1)), "0.1"),
            (value(Kind::Double(f64::NAN)), "\"NaN\""),
            (value(Kind::Decimal("12345678901234567890.01".into())), "12345678901234567890.01"),
            (value(Kind::Text("a\"b\n".into())), r#""a\"b\n""#),
            (value(Kind::TimestampMicros(0)), "\"1970-01-01T00:00:00Z\""),
        ];
        for (value, expected) in cases {
            let mut text = String::new();
            json(&value, &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn csv_quotes_what_would_break_a_line() {
        assert_eq!(csv("plain"), "plain");
        assert_eq!(csv("a,\"b\"\nc"), "\"a,\"\"b\"\"\nc\"");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 27004, 1_000_000].map(thousands),
            ["0", "999", "1,000", "27,004", "1,000,000"]
        );
    }
}
