//! `WITH (name = value, …)`.

use headwater_types::Name;
use sqlparser::{
    ast::Ident,
    tokenizer::{Location, Token},
};

use crate::{
    Diagnostic, duration,
    lexer::{Cursor, Result, refuse},
    suggest,
};

/// Longest name of a stream or view: what is derived from it ("….dead-letters") must be a legal
/// name as well.
const LONGEST_NAME: usize = 180;

/// One option as the person wrote it.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) text: String,
    /// The position of the value.
    pub(crate) at: Location,
    name: String,
    name_at: Location,
}

/// The options of one statement. Each is taken at most once. [`Options::finish`] refuses the rest.
#[derive(Debug)]
pub(crate) struct Options {
    settings: Vec<Setting>,
    allowed: &'static [&'static str],
}

impl Options {
    pub(crate) fn none(allowed: &'static [&'static str]) -> Self {
        Self { settings: Vec::new(), allowed }
    }

    /// Reads the list after WITH.
    pub(crate) fn read(cursor: &mut Cursor, allowed: &'static [&'static str]) -> Result<Self> {
        let instead = "write WITH (name = 'value', …)";
        cursor.expect(&Token::LParen, instead)?;
        let mut settings: Vec<Setting> = Vec::new();
        while !cursor.eat(&Token::RParen) {
            if !settings.is_empty() {
                cursor.expect(&Token::Comma, instead)?;
            }
            let name_at = cursor.location();
            let name = cursor.identifier("the name of an option", instead)?.value.to_lowercase();
            if !allowed.contains(&&*name) {
                return refuse(
                    name_at,
                    format!("there is no option {name} here"),
                    suggest::or_list(&name, allowed.iter().copied()),
                );
            }
            if settings.iter().any(|setting| setting.name == name) {
                return refuse(name_at, format!("{name} is given twice"), "keep one of the two");
            }
            cursor.expect(&Token::Eq, instead)?;
            let at = cursor.location();
            let text = if cursor.is_word("INTERVAL") {
                interval(cursor)?
            } else if let Some(text) = cursor.string() {
                text
            } else if let Some(number) = cursor.number() {
                number
            } else {
                return cursor.unexpected("a value in single quotes", instead);
            };
            settings.push(Setting { text, at, name, name_at });
        }
        Ok(Self { settings, allowed })
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Setting> {
        let place = self.settings.iter().position(|setting| setting.name == name)?;
        Some(self.settings.swap_remove(place))
    }

    /// Takes an option that is a duration of at least `least` microseconds.
    pub(crate) fn take_duration(
        &mut self,
        name: &str,
        least: i64,
    ) -> Result<Option<(i64, Location)>> {
        let Some(setting) = self.take(name) else { return Ok(None) };
        let micros = micros(&setting.text, setting.at)?;
        if micros < least {
            let reason =
                format!("{name} = '{}' is less than {}", setting.text, duration::print(least));
            return refuse(setting.at, reason, "write a longer time, such as '10 minutes'");
        }
        Ok(Some((micros, setting.at)))
    }

    /// Refuses options that were not taken.
    pub(crate) fn finish(self) -> Result<()> {
        match self.settings.into_iter().next() {
            Some(setting) => refuse(
                setting.name_at,
                format!("{} does not apply here", setting.name),
                suggest::or_list("", self.allowed.iter().copied()),
            ),
            None => Ok(()),
        }
    }
}

/// Parses the duration at `at`.
pub(crate) fn micros(text: &str, at: Location) -> Result<i64> {
    duration::parse(text).map_err(|error| Diagnostic::at(at, error.reason, error.instead))
}

/// `INTERVAL '10 minutes'` or `INTERVAL '10' MINUTE`, as text.
pub(crate) fn interval(cursor: &mut Cursor) -> Result<String> {
    let instead =
        "write INTERVAL and a length of time in single quotes, such as INTERVAL '10 minutes'";
    cursor.expect_word("INTERVAL", instead)?;
    let text = match cursor.string().or_else(|| cursor.number()) {
        Some(text) => text,
        None => return cursor.unexpected("a length of time", instead),
    };
    let bare = text.trim().parse::<f64>().is_ok();
    match cursor.peek() {
        Token::Word(word) if bare && word.quote_style.is_none() => {
            let unit = word.value.clone();
            cursor.identifier("a unit", instead)?;
            Ok(format!("{} {unit}", text.trim()))
        }
        _ => Ok(text),
    }
}

/// Checks the name of a stream, view or topic.
pub(crate) fn name(text: &str, at: Location, what: &str) -> Result<Name> {
    if text.len() > LONGEST_NAME {
        let reason = format!("the name of this {what} has {} characters", text.len());
        return refuse(at, reason, format!("write at most {LONGEST_NAME}"));
    }
    Name::new(text).or_else(|_| {
        let reason = format!("\"{text}\" cannot name a {what}");
        refuse(at, reason, "use letters, digits, '_', '-' and '.' only")
    })
}

/// The name in an identifier.
pub(crate) fn named(ident: &Ident, what: &str) -> Result<Name> {
    name(&ident.value, ident.span.start, what)
}
