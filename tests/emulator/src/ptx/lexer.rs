//! Splits PTX text into tokens (PTX ISA, sections 4.1 to 4.5): words, dotted words, numbers, strings, punctuation. Comments vanish.

/// One token and the line it is on, counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) line: u32,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenKind {
    /// An identifier, an opcode, a register: `add`, `%r1`, `$L__BB0_1`.
    Word(String),
    /// A directive or a modifier, without its dot: `global`, `L2::128B`.
    Dotted(String),
    /// An integer literal; the value modulo 2^64.
    Int(u64),
    /// `0f3F800000`.
    F32(u32),
    /// `0d3FF0000000000000`, or a decimal literal with a point.
    F64(u64),
    /// A quoted string.
    Text(String),
    /// Any of `{}()[]<>,;:|@!=+-*/~&^?%`.
    Punct(char),
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$'
}

/// The tokens of a text; an error gives the line and what is wrong there.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, (u32, String)> {
    let mut lexer = Lexer { rest: text, line: 1 };
    let mut out = Vec::new();
    while let Some(token) = lexer.next()? {
        out.push(token);
    }
    Ok(out)
}

struct Lexer<'t> {
    rest: &'t str,
    line: u32,
}

impl<'t> Lexer<'t> {
    fn take(&mut self, bytes: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count() as u32;
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    fn skip_blank(&mut self) -> Result<(), (u32, String)> {
        loop {
            self.take_while(char::is_whitespace);
            if self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest.starts_with("/*") {
                let end = self.rest.find("*/").ok_or((self.line, "a comment without an end".to_owned()))?;
                self.take(end + 2);
            } else {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token>, (u32, String)> {
        self.skip_blank()?;
        let line = self.line;
        let mut chars = self.rest.chars();
        let Some(first) = chars.next() else { return Ok(None) };
        let second = chars.next().unwrap_or(' ');
        let kind = match first {
            '.' if word(second) => TokenKind::Dotted(self.dotted()),
            '0'..='9' => self.number().map_err(|message| (line, message))?,
            '"' => {
                let end = self.rest[1..].find('"').ok_or((line, "a string without an end".to_owned()))?;
                TokenKind::Text(self.take(end + 2).trim_matches('"').to_owned())
            }
            '%' if word(second) => {
                self.take(1);
                TokenKind::Word(format!("%{}", self.take_while(word)))
            }
            c if word(c) => TokenKind::Word(self.take_while(word).to_owned()),
            c if "{}()[]<>,;:|@!=+-*/~&^?%".contains(c) => {
                self.take(1);
                TokenKind::Punct(c)
            }
            c => return Err((line, format!("the character {c:?} is not part of PTX"))),
        };
        Ok(Some(Token { kind, line }))
    }

    /// `.shared::cta` is one word; a single colon ends it.
    fn dotted(&mut self) -> String {
        self.take(1);
        let mut name = self.take_while(word).to_owned();
        while self.rest.starts_with("::") {
            self.take(2);
            name.push_str("::");
            name.push_str(self.take_while(word));
        }
        name
    }

    fn number(&mut self) -> Result<TokenKind, String> {
        let bytes = self.rest.as_bytes();
        let marker = bytes.get(1).copied().unwrap_or(b' ').to_ascii_lowercase();
        let wrong = |text: &str| format!("`{text}` is not a number");
        if bytes[0] == b'0' && matches!(marker, b'f' | b'd') {
            let text = self.take_while(word);
            let bits = u64::from_str_radix(&text[2..], 16).map_err(|_| wrong(text))?;
            return match (marker, text.len()) {
                (b'f', 10) => Ok(TokenKind::F32(bits as u32)),
                (b'd', 18) => Ok(TokenKind::F64(bits)),
                _ => Err(wrong(text)),
            };
        }
        let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(bytes.len());
        if bytes.get(digits) == Some(&b'.') && bytes.get(digits + 1).is_some_and(u8::is_ascii_digit) {
            let text = self.take_while(|c| c.is_ascii_digit() || c == '.');
            let value: f64 = text.parse().map_err(|_| wrong(text))?;
            return Ok(TokenKind::F64(value.to_bits()));
        }
        let text = self.take_while(word);
        let plain = text.trim_end_matches(['U', 'u']);
        let value = match marker {
            b'x' => u64::from_str_radix(&plain[2..], 16),
            b'b' => u64::from_str_radix(&plain[2..], 2),
            b'0'..=b'9' if bytes[0] == b'0' => u64::from_str_radix(plain, 8),
            _ => plain.parse(),
        };
        value.map(TokenKind::Int).map_err(|_| wrong(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<TokenKind> {
        tokens(text).unwrap().into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn words_modifiers_and_labels() {
        let word = |s: &str| TokenKind::Word(s.into());
        let dotted = |s: &str| TokenKind::Dotted(s.into());
        assert_eq!(kinds("$L__BB0_1: // here"), [word("$L__BB0_1"), TokenKind::Punct(':')]);
        assert_eq!(
            kinds("ld.global.L2::128B /* hint */ %r1"),
            [word("ld"), dotted("global"), dotted("L2::128B"), word("%r1")]
        );
        assert_eq!(kinds("%tid.x"), [word("%tid"), dotted("x")]);
    }

    #[test]
    fn numbers() {
        assert_eq!(kinds("12 0x1F 017 0b101 7U"), [12, 31, 15, 5, 7].map(TokenKind::Int));
        assert_eq!(kinds("0f3F800000"), [TokenKind::F32(0x3f80_0000)]);
        assert_eq!(kinds("0d3FF0000000000000 0.5"), [1.0f64, 0.5].map(|v| TokenKind::F64(v.to_bits())));
        assert_eq!(tokens("\n0f12").unwrap_err(), (2, "`0f12` is not a number".to_owned()));
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let lines: Vec<u32> = tokens("a\n/* \n */ b\n// c\nd").unwrap().iter().map(|t| t.line).collect();
        assert_eq!(lines, [1, 3, 5]);
        assert_eq!(tokens("a\n\u{7}").unwrap_err().0, 2);
    }
}
