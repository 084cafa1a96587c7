//! Splits a text into statements: tokens with their positions, and a cursor over them.
//!
//! `sqlparser` does not know `CREATE STREAM`, `WATERMARK FOR`, `EMIT` and the arguments of
//! `TUMBLE`, so this crate reads these token by token. `sqlparser` parses types and expressions
//! from the same tokens, so every message can give a position.

use sqlparser::{
    ast::{Expr, Ident},
    dialect::PostgreSqlDialect,
    keywords::{Keyword, RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_TABLE_ALIAS},
    parser::{Parser, ParserError},
    tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Word},
};

use crate::Diagnostic;

/// Identifiers, literals and operators have PostgreSQL's syntax.
pub(crate) static DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// The maximal size of a text in bytes.
const MOST_TEXT: usize = 1 << 20;
/// The maximal number of tokens in a statement.
const MOST_TOKENS: usize = 50_000;
/// The maximal nesting of parentheses and CASEs.
const DEEPEST: usize = 64;
/// The maximal number of operators in an expression. Each may add a level to the expression's tree,
/// and trees are walked recursively.
const MOST_OPERATORS: usize = 500;

pub(crate) type Result<T> = std::result::Result<T, Diagnostic>;

/// Returns a refusal.
pub(crate) fn refuse<T>(
    at: Location,
    reason: impl Into<String>,
    instead: impl Into<String>,
) -> Result<T> {
    Err(Diagnostic::at(at, reason, instead))
}

/// The tokens of one statement, and the read position.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    tokens: Vec<TokenWithSpan>,
    at: usize,
    /// The position at which the statement ends.
    end: Location,
}

/// Splits a text at its semicolons and drops empty statements.
pub(crate) fn statements(text: &str) -> Result<Vec<Cursor>> {
    let start = Location::new(1, 1);
    if text.len() > MOST_TEXT {
        return refuse(
            start,
            format!("{} bytes are more than a definition file may have", text.len()),
            format!("split it into files of at most {MOST_TEXT} bytes"),
        );
    }
    let tokens = Tokenizer::new(&DIALECT, text).tokenize_with_location();
    let tokens = tokens.map_err(|error| Diagnostic::bare(error.location, error.message))?;
    let mut statements = Vec::new();
    let mut statement = Vec::new();
    let mut end = start;
    for token in tokens {
        match token.token {
            Token::Whitespace(_) => continue,
            Token::SemiColon | Token::EOF => {
                let tokens = std::mem::take(&mut statement);
                if !tokens.is_empty() {
                    statements.push(Cursor { tokens, at: 0, end: token.span.start });
                }
            }
            _ => {
                end = token.span.end;
                statement.push(token);
            }
        }
    }
    if !statement.is_empty() {
        statements.push(Cursor { tokens: statement, at: 0, end });
    }
    Ok(statements)
}

impl Cursor {
    pub(crate) fn peek(&self) -> &Token {
        self.peek_at(0)
    }

    /// The token `ahead` positions after the next one.
    pub(crate) fn peek_at(&self, ahead: usize) -> &Token {
        self.tokens.get(self.at + ahead).map_or(&Token::EOF, |token| &token.token)
    }

    /// The position of the next token.
    pub(crate) fn location(&self) -> Location {
        self.tokens.get(self.at).map_or(self.end, |token| token.span.start)
    }

    pub(crate) fn is_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.is_word_at(0, word)
    }

    pub(crate) fn is_word_at(&self, ahead: usize, word: &str) -> bool {
        is_word(self.peek_at(ahead), word)
    }

    /// Takes an unquoted word in any letter case.
    pub(crate) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn eat(&mut self, token: &Token) -> bool {
        let found = self.peek() == token;
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect_word(&mut self, word: &str, instead: &str) -> Result<()> {
        if self.eat_word(word) { Ok(()) } else { self.unexpected(word, instead) }
    }

    pub(crate) fn expect(&mut self, token: &Token, instead: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { self.unexpected(&format!("'{token}'"), instead) }
    }

    /// Refuses the next token: "expected …, found …".
    pub(crate) fn unexpected<T>(&self, expected: &str, instead: &str) -> Result<T> {
        let found = match self.peek() {
            Token::EOF => "the end of the statement".to_owned(),
            token => format!("'{}'", shorten(&token.to_string())),
        };
        refuse(self.location(), format!("expected {expected}, found {found}"), instead)
    }

    /// Takes an identifier and folds it.
    pub(crate) fn identifier(&mut self, what: &str, instead: &str) -> Result<Ident> {
        let Some(TokenWithSpan { token: Token::Word(word), span }) = self.tokens.get(self.at)
        else {
            return self.unexpected(what, instead);
        };
        let ident = fold(identifier_of(word, *span));
        self.at += 1;
        Ok(ident)
    }

    /// Takes a single-quoted string.
    pub(crate) fn string(&mut self) -> Option<String> {
        let Token::SingleQuotedString(text) = self.peek() else { return None };
        let text = text.clone();
        self.at += 1;
        Some(text)
    }

    /// Takes an unsigned number, as it is written.
    pub(crate) fn number(&mut self) -> Option<String> {
        let Token::Number(text, _) = self.peek() else { return None };
        let text = text.clone();
        self.at += 1;
        Some(text)
    }

    /// Takes the tokens up to the first one outside of parentheses for which `stop` holds.
    pub(crate) fn take_until(&mut self, stop: impl Fn(&Cursor) -> bool) -> Cursor {
        let from = self.at;
        let mut depth = 0usize;
        while !self.is_end() {
            if depth == 0 && stop(self) {
                break;
            }
            match self.peek() {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
        }
        let tokens = self.tokens.get(from..self.at).unwrap_or_default().to_vec();
        Cursor { tokens, at: 0, end: self.location() }
    }

    /// Takes the tokens from `at` on, counted from the next token.
    pub(crate) fn split_off(&mut self, at: usize) -> Cursor {
        let tokens = self.tokens.split_off((self.at + at).min(self.tokens.len()));
        let tail = Cursor { end: self.end, tokens, at: 0 };
        self.end = tail.location();
        tail
    }

    /// Removes the token `ahead` positions after the next one.
    pub(crate) fn remove(&mut self, ahead: usize) {
        if self.at + ahead < self.tokens.len() {
            self.tokens.remove(self.at + ahead);
        }
    }

    /// The number of tokens that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.at
    }

    /// Parses the remaining tokens with `sqlparser`, which must use all of them.
    pub(crate) fn parse<T>(
        &self,
        what: &str,
        parse: impl FnOnce(&mut Parser<'_>) -> std::result::Result<T, ParserError>,
    ) -> Result<T> {
        let tokens = self.tokens.get(self.at..).unwrap_or_default().to_vec();
        // `check_size` has limited the depth. sqlparser's own limit of 50 is too low for real
        // statements.
        let parser = Parser::new(&DIALECT).with_recursion_limit(4 * MOST_OPERATORS);
        let mut parser = parser.with_tokens_with_locations(tokens);
        let parsed = parse(&mut parser).map_err(|error| self.parser_error(error))?;
        let next = parser.peek_token();
        if next.token != Token::EOF {
            let found = shorten(&next.token.to_string());
            let reason = format!("'{found}' does not belong here, behind {what}");
            return Err(Diagnostic::bare(next.span.start, reason));
        }
        Ok(parsed)
    }

    fn parser_error(&self, error: ParserError) -> Diagnostic {
        match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
                let (message, at) = place_of(&message);
                let message = message.replace("found: EOF", "found the end of the statement");
                let message = match message.strip_prefix("Expected") {
                    Some(rest) => format!("expected {}", rest.trim_start_matches([':', ' '])),
                    None => message,
                };
                Diagnostic::bare(at.unwrap_or(self.end), message.replace("found: ", "found "))
            }
            ParserError::RecursionLimitExceeded => Diagnostic::at(
                self.location(),
                "this is nested too deeply",
                "write it in fewer levels",
            ),
        }
    }

    /// Refuses a statement whose tree would be too deep to walk, before the tree is built.
    pub(crate) fn check_size(&self) -> Result<()> {
        if self.tokens.len() > MOST_TOKENS {
            return refuse(
                self.location(),
                format!("the statement has {} words and signs", self.tokens.len()),
                format!("write it with at most {MOST_TOKENS}"),
            );
        }
        // The number of operators since the last separator, per open level.
        let mut levels = vec![0usize];
        let mut sum = 0;
        for token in &self.tokens {
            let keyword = match &token.token {
                Token::Word(word) => word.keyword,
                _ => Keyword::NoKeyword,
            };
            if matches!(token.token, Token::LParen | Token::LBracket | Token::LBrace)
                || keyword == Keyword::CASE
            {
                levels.push(0);
                if levels.len() > DEEPEST {
                    return refuse(
                        token.span.start,
                        format!("this is nested more than {DEEPEST} levels deep"),
                        "write it in fewer levels",
                    );
                }
            } else if matches!(token.token, Token::RParen | Token::RBracket | Token::RBrace)
                || keyword == Keyword::END
            {
                sum -= levels.pop().unwrap_or(0);
                if levels.is_empty() {
                    levels.push(0);
                }
            } else if token.token == Token::Comma || separates(keyword) {
                if let Some(level) = levels.last_mut() {
                    sum -= std::mem::take(level);
                }
            } else if is_operator(&token.token, keyword)
                && let Some(level) = levels.last_mut()
            {
                *level += 1;
                sum += 1;
                if sum > MOST_OPERATORS {
                    return refuse(
                        token.span.start,
                        format!("one expression has more than {MOST_OPERATORS} operators"),
                        "write IN (…) or CASE for a long OR, or compute it before it becomes an event",
                    );
                }
            }
        }
        Ok(())
    }
}

/// Whether the keyword separates two expressions.
fn separates(keyword: Keyword) -> bool {
    let separators = [
        Keyword::WHEN,
        Keyword::THEN,
        Keyword::ELSE,
        Keyword::SELECT,
        Keyword::WHERE,
        Keyword::GROUP,
    ];
    separators.contains(&keyword)
}

fn is_operator(token: &Token, keyword: Keyword) -> bool {
    match token {
        Token::Word(_) => matches!(
            keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::NOTNULL
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::AT
                | Keyword::COLLATE
                | Keyword::INTERVAL
                | Keyword::UNION
                | Keyword::INTERSECT
                | Keyword::EXCEPT
                | Keyword::JOIN
                | Keyword::OPERATOR
        ),
        Token::Number(..) | Token::SingleQuotedString(_) | Token::Period | Token::EOF => false,
        _ => true,
    }
}

pub(crate) fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

fn identifier_of(word: &Word, span: Span) -> Ident {
    Ident { value: word.value.clone(), quote_style: word.quote_style, span }
}

/// Folds an unquoted identifier to lower case, as PostgreSQL does. The result has quotes exactly if
/// it needs them, so that each name has one spelling.
pub(crate) fn fold(mut ident: Ident) -> Ident {
    if ident.quote_style.is_none() {
        ident.value.make_ascii_lowercase();
    }
    ident.quote_style = needs_quotes(&ident.value).then_some('"');
    ident
}

fn needs_quotes(name: &str) -> bool {
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain {
        return true;
    }
    let word = Token::make_word(name, None);
    let Token::Word(Word { keyword, .. }) = word else { return true };
    if keyword == Keyword::NoKeyword {
        return false;
    }
    let mut parser = Parser::new(&DIALECT).with_tokens(vec![word]);
    RESERVED_FOR_COLUMN_ALIAS.contains(&keyword)
        || RESERVED_FOR_TABLE_ALIAS.contains(&keyword)
        || !matches!(parser.parse_expr(), Ok(Expr::Identifier(_)))
}

/// Splits " at Line: 1, Column: 2" off a message of sqlparser.
fn place_of(message: &str) -> (&str, Option<Location>) {
    let place = || {
        let (message, place) = message.rsplit_once(" at Line: ")?;
        let (line, column) = place.split_once(", Column: ")?;
        Some((message, Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?)))
    };
    match place() {
        Some((message, at)) => (message, Some(at)),
        None => (message, None),
    }
}

/// Cuts long text, so that a message stays short.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}
