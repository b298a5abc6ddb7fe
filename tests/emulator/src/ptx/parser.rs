//! Parses a module: header, variables, functions (PTX ISA, section 11, "Directives"). Bodies are in `statements`.

use super::ParseError;
use super::ast::{Function, Initial, Space, Text, Variable};
use super::lexer::{Token, TokenKind, tokens};

/// What goes wrong: a line and a message.
pub(crate) type Failure = (u32, String);

/// Parses the text of a module.
pub(crate) fn parse(text: &str) -> Result<Text, ParseError> {
    let located = |(line, message): Failure| ParseError {
        line,
        message,
        text: text.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default().trim().to_owned(),
    };
    let tokens = tokens(text).map_err(located)?;
    let mut parser = Parser { tokens, at: 0 };
    parser.module().map_err(located)
}

pub(crate) struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

/// The bytes of one element of a fundamental type (section 5.2).
pub(crate) fn type_bytes(ty: &str) -> Option<u64> {
    Some(match ty {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}

impl Parser {
    pub(crate) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    pub(crate) fn peek(&self) -> Option<&TokenKind> {
        self.tokens.get(self.at).map(|t| &t.kind)
    }

    pub(crate) fn peek_second(&self) -> Option<&TokenKind> {
        self.tokens.get(self.at + 1).map(|t| &t.kind)
    }

    pub(crate) fn next(&mut self) -> Result<TokenKind, Failure> {
        let token = self.tokens.get(self.at).ok_or((self.line(), "the text ends too early".to_owned()))?;
        self.at += 1;
        Ok(token.kind.clone())
    }

    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Result<T, Failure> {
        Err((self.line(), message.into()))
    }

    pub(crate) fn accept(&mut self, punct: char) -> bool {
        let found = self.peek() == Some(&TokenKind::Punct(punct));
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, punct: char) -> Result<(), Failure> {
        if self.accept(punct) { Ok(()) } else { self.fail(format!("`{punct}` is expected")) }
    }

    /// Takes a `.word` if it is one of these.
    pub(crate) fn accept_dotted(&mut self, names: &[&str]) -> bool {
        let found = matches!(self.peek(), Some(TokenKind::Dotted(d)) if names.contains(&d.as_str()));
        self.at += usize::from(found);
        found
    }

    pub(crate) fn word(&mut self) -> Result<String, Failure> {
        match self.peek() {
            Some(TokenKind::Word(_)) => match self.next()? {
                TokenKind::Word(word) => Ok(word),
                _ => self.fail("a name is expected"),
            },
            _ => self.fail("a name is expected"),
        }
    }

    pub(crate) fn int(&mut self) -> Result<u64, Failure> {
        let negative = self.accept('-');
        match self.peek() {
            Some(&TokenKind::Int(value)) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => self.fail("an integer is expected"),
        }
    }

    fn small(&mut self) -> Result<u32, Failure> {
        let value = self.int()?;
        u32::try_from(value).or_else(|_| self.fail(format!("{value} is too large")))
    }

    fn module(&mut self) -> Result<Text, Failure> {
        let mut text = Text::default();
        while self.peek().is_some() {
            let TokenKind::Dotted(directive) = self.next()? else {
                self.at -= 1;
                return self.fail("a directive is expected");
            };
            match directive.as_str() {
                "version" => text.version = self.version()?,
                "target" => {
                    text.target = self.word()?;
                    while self.accept(',') {
                        self.word()?;
                    }
                }
                "address_size" if self.int()? != 64 => return self.fail("only addresses of 64 bits are supported"),
                "address_size" => {}
                "file" | "section" | "loc" | "pragma" => self.debug(&directive)?,
                "visible" | "extern" | "weak" | "common" => {}
                "entry" | "func" => {
                    let function = self.function(directive == "entry")?;
                    // A declaration may come before its definition.
                    text.functions.retain(|f| f.name != function.name || f.body.is_some());
                    if !text.functions.iter().any(|f| f.name == function.name) {
                        text.functions.push(function);
                    } else if function.body.is_some() {
                        return Err((function.line, format!("{} is defined twice", function.name)));
                    }
                }
                "global" | "const" | "shared" => {
                    text.variables.extend(self.variables(&directive)?);
                }
                other => {
                    self.at -= 1;
                    return self.fail(format!("the directive .{other} is not supported"));
                }
            }
        }
        if text.version.is_empty() || text.target.is_empty() {
            return self.fail("a module starts with .version and .target");
        }
        Ok(text)
    }

    fn version(&mut self) -> Result<String, Failure> {
        match self.next()? {
            // 8.6 reads as a decimal number.
            TokenKind::F64(bits) => Ok(format!("{:?}", f64::from_bits(bits))),
            _ => self.fail("a version is expected"),
        }
    }

    /// Skips a directive for debuggers; these end with the line but for sections, which have a block.
    pub(crate) fn debug(&mut self, directive: &str) -> Result<(), Failure> {
        if directive == "section" {
            while !self.accept('{') {
                self.next()?;
            }
            while !self.accept('}') {
                self.next()?;
            }
            return Ok(());
        }
        let line = self.tokens[self.at - 1].line;
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
        Ok(())
    }

    /// One or more variables of a state space, after its name, up to the semicolon.
    pub(crate) fn variables(&mut self, space: &str) -> Result<Vec<Variable>, Failure> {
        let mut found = vec![self.variable(space)?];
        while self.accept(',') {
            let first = found[0].clone();
            found.push(self.declarator(first.space, first.align, first.element)?);
        }
        self.expect(';')?;
        Ok(found)
    }

    /// `.align 4 .b8 name[16] = {...}`, after the state space.
    fn variable(&mut self, space: &str) -> Result<Variable, Failure> {
        let space = match space {
            "global" => Space::Global,
            "const" => Space::Const,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            other => return self.fail(format!("no variables lie in .{other}")),
        };
        let mut align = None;
        let mut lanes = 1;
        loop {
            let TokenKind::Dotted(word) = self.next()? else { return self.fail("a type is expected") };
            match word.as_str() {
                "align" => align = Some(self.int()?),
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                ty => {
                    let element = type_bytes(ty).map_or_else(|| self.fail(format!("the type .{ty}")), Ok)? * lanes;
                    // `.param .u64 .ptr .global .align 16 name`: the alignment is the pointee's.
                    if self.accept_dotted(&["ptr"]) {
                        self.accept_dotted(&["global", "const", "shared", "local"]);
                        if self.accept_dotted(&["align"]) {
                            self.int()?;
                        }
                    }
                    return self.declarator(space, align.unwrap_or(element), element);
                }
            }
        }
    }

    fn declarator(&mut self, space: Space, align: u64, element: u64) -> Result<Variable, Failure> {
        let line = self.line();
        let name = self.word()?;
        let mut count = Some(1);
        while self.accept('[') {
            if self.accept(']') {
                count = None;
            } else {
                let extent = self.int()?;
                count = count.map(|c| c * extent);
                self.expect(']')?;
            }
        }
        let mut initial = Vec::new();
        if self.accept('=') {
            self.initial(element, &mut initial)?;
            count = count.or(Some(initial.len() as u64));
        }
        Ok(Variable { name, space, align, element, bytes: count.map(|c| c * element), initial, line })
    }

    fn initial(&mut self, element: u64, out: &mut Vec<Initial>) -> Result<(), Failure> {
        if self.accept('{') {
            while !self.accept('}') {
                self.initial(element, out)?;
                self.accept(',');
            }
            return Ok(());
        }
        let negative = self.accept('-');
        let value = match self.next()? {
            TokenKind::Int(v) => Initial::Bits(if negative { v.wrapping_neg() } else { v }),
            TokenKind::F32(v) => Initial::Bits(v.into()),
            TokenKind::F64(v) if element == 4 => Initial::Bits((f64::from_bits(v) as f32).to_bits().into()),
            TokenKind::F64(v) => Initial::Bits(v),
            TokenKind::Word(word) => {
                let generic = word == "generic" && self.accept('(');
                let name = if generic { self.word()? } else { word };
                if generic {
                    self.expect(')')?;
                }
                let offset = if self.accept('+') { self.int()? as i64 } else { 0 };
                Initial::Address(name, offset)
            }
            _ => return self.fail("an initial value is expected"),
        };
        out.push(value);
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<Variable>, Failure> {
        let mut found = Vec::new();
        if !self.accept('(') {
            return Ok(found);
        }
        while !self.accept(')') {
            if self.accept_dotted(&["param"]) {
                found.push(self.variable("param")?);
            } else {
                return self.fail("only parameters in .param are supported");
            }
            self.accept(',');
        }
        Ok(found)
    }

    fn function(&mut self, entry: bool) -> Result<Function, Failure> {
        let line = self.line();
        let returns = if entry { Vec::new() } else { self.parameters()? };
        let name = self.word()?;
        let params = self.parameters()?;
        let mut function = Function {
            name,
            entry,
            returns,
            params,
            reqntid: None,
            maxntid: None,
            minnctapersm: None,
            maxnreg: None,
            body: None,
            line,
        };
        loop {
            match self.next()? {
                TokenKind::Punct(';') => return Ok(function),
                TokenKind::Punct('{') => {
                    function.body = Some(self.block()?);
                    return Ok(function);
                }
                TokenKind::Dotted(word) => match word.as_str() {
                    "reqntid" => function.reqntid = Some(self.extent()?),
                    "maxntid" => function.maxntid = Some(self.extent()?),
                    "minnctapersm" => function.minnctapersm = Some(self.small()?),
                    "maxnreg" => function.maxnreg = Some(self.small()?),
                    "maxnctapersm" | "maxclusterrank" => {
                        self.int()?;
                    }
                    "noreturn" | "explicitcluster" | "blocksareclusters" => {}
                    "reqnctapercluster" if self.extent()? != [1, 1, 1] => {
                        return self.fail("clusters of several blocks are not supported");
                    }
                    "reqnctapercluster" => {}
                    "pragma" => {
                        self.next()?;
                        self.expect(';')?;
                    }
                    other => return self.fail(format!("the directive .{other} is not supported")),
                },
                _ => return self.fail("the body of a function is expected"),
            }
        }
    }

    fn extent(&mut self) -> Result<[u32; 3], Failure> {
        let mut extent = [self.small()?, 1, 1];
        for more in &mut extent[1..] {
            if self.accept(',') {
                *more = self.small()?;
            }
        }
        Ok(extent)
    }
}
