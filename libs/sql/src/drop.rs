//! `DROP STREAM` and `DROP VIEW`: the statements that delete.

use headwater_types::Name;
use sqlparser::tokenizer::Token;

use crate::{
    lexer::{Cursor, Result, refuse},
    options,
    stream::quoted,
};

/// The kind of object that a DROP statement deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    Stream,
    View,
}

/// `DROP STREAM name` or `DROP VIEW name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropDefinition {
    pub dropped: Dropped,
    pub name: Name,
    /// `IF EXISTS`: it is no error that there is nothing of this name.
    pub if_exists: bool,
    /// The normal form of the statement.
    pub sql: String,
}

/// Reads what follows `DROP`.
pub(crate) fn read(cursor: &mut Cursor) -> Result<DropDefinition> {
    let form = "write DROP STREAM name or DROP VIEW name";
    let dropped = if cursor.eat_word("STREAM") {
        Dropped::Stream
    } else {
        cursor.eat_word("MATERIALIZED");
        if !cursor.eat_word("VIEW") {
            return cursor.unexpected("STREAM or VIEW", form);
        }
        Dropped::View
    };
    let word = match dropped {
        Dropped::Stream => "stream",
        Dropped::View => "view",
    };
    let if_exists = cursor.is_word("IF") && cursor.is_word_at(1, "EXISTS");
    if if_exists {
        cursor.eat_word("IF");
        cursor.eat_word("EXISTS");
    }
    let name = options::named(&cursor.identifier(&format!("the name of the {word}"), form)?, word)?;
    if cursor.is_word("CASCADE") {
        let reason = "CASCADE is not supported: nothing is deleted that is not named";
        return refuse(cursor.location(), reason, "write a DROP VIEW for each view of the stream");
    }
    if cursor.is_word("RESTRICT") {
        let reason = "RESTRICT is not needed: what something depends on is never deleted";
        return refuse(cursor.location(), reason, "leave it out");
    }
    if cursor.peek() == &Token::Comma {
        let reason = "one DROP deletes one object";
        return refuse(cursor.location(), reason, "write a DROP statement for each name");
    }
    if !cursor.is_end() {
        return cursor.unexpected("the end of the statement", "end the statement with ';'");
    }
    let condition = if if_exists { "IF EXISTS " } else { "" };
    let sql = format!("DROP {} {condition}{}", word.to_uppercase(), quoted(name.as_str()));
    Ok(DropDefinition { dropped, name, if_exists, sql })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Statement, parse, parse_stream, parse_view};

    fn only(sql: &str) -> DropDefinition {
        match parse(sql).unwrap().as_slice() {
            [Statement::Drop(drop)] => drop.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_drop_names_one_object_and_has_one_normal_form() {
        for (text, sql) in [
            ("DROP STREAM orders", "DROP STREAM orders"),
            ("drop  stream /* gone */ Orders;", "DROP STREAM orders"),
            ("DROP VIEW spend", "DROP VIEW spend"),
            ("DROP MATERIALIZED VIEW Spend", "DROP VIEW spend"),
            ("drop view if exists spend;", "DROP VIEW IF EXISTS spend"),
            ("DROP STREAM IF EXISTS \"Web-Clicks\"", "DROP STREAM IF EXISTS \"Web-Clicks\""),
        ] {
            let drop = only(text);
            assert_eq!(drop.sql, sql);
            assert_eq!(only(&drop.sql), drop, "the normal form is its own normal form");
            assert_eq!(drop.if_exists, sql.contains("IF EXISTS"));
            assert_eq!(drop.dropped == Dropped::View, sql.contains("VIEW"));
        }
        assert_eq!(only("DROP STREAM \"Web-Clicks\"").name.as_str(), "Web-Clicks");
    }

    #[test]
    fn a_drop_stands_beside_definitions_in_a_file() {
        let text =
            "DROP VIEW v; CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts); DROP STREAM t";
        let statements = parse(text).unwrap();
        assert!(matches!(
            statements.as_slice(),
            [Statement::Drop(_), Statement::Stream(_), Statement::Drop(_)]
        ));
    }

    #[test]
    fn what_cannot_be_dropped_is_refused_with_place_reason_and_remedy() {
        for (sql, at, reason, instead) in [
            (
                "DROP TABLE t",
                "column 6",
                "expected STREAM or VIEW, found 'TABLE'",
                "DROP VIEW name",
            ),
            ("DROP", "column", "expected STREAM or VIEW", "DROP STREAM name"),
            ("DROP MATERIALIZED STREAM s", "column 19", "expected STREAM or VIEW", "write DROP"),
            ("DROP VIEW", "column", "expected the name of the view", "DROP VIEW name"),
            ("DROP VIEW a, b", "column 12", "one DROP deletes one object", "each name"),
            ("DROP STREAM s CASCADE", "column 15", "CASCADE is not supported", "DROP VIEW"),
            ("DROP STREAM s RESTRICT", "column 15", "RESTRICT is not needed", "leave it out"),
            ("DROP VIEW v now", "column 13", "expected the end of the statement", "';'"),
        ] {
            let refused = parse(sql).unwrap_err().to_string();
            for part in [at, reason, instead] {
                assert!(refused.contains(part), "{sql}: {refused:?} should say {part:?}");
            }
        }
    }

    #[test]
    fn a_drop_is_no_definition() {
        let refused = parse_stream("DROP STREAM s").unwrap_err().to_string();
        assert!(refused.contains("expected CREATE STREAM, found DROP"), "{refused}");
        let refused = parse_view("DROP VIEW v").unwrap_err().to_string();
        assert!(refused.contains("expected CREATE MATERIALIZED VIEW, found DROP"), "{refused}");
    }
}
