//! Parses the body of a function: declarations, labels, blocks, instructions and their operands (PTX ISA, sections 4.1 and 6).

use super::ast::{Instruction, Operand, Register, Statement};
use super::lexer::TokenKind;
use super::parser::{Failure, Parser};

impl Parser {
    /// Statements up to the closing brace.
    pub(crate) fn block(&mut self) -> Result<Vec<Statement>, Failure> {
        let mut body = Vec::new();
        while !self.accept('}') {
            self.statement(&mut body)?;
        }
        Ok(body)
    }

    fn statement(&mut self, body: &mut Vec<Statement>) -> Result<(), Failure> {
        match self.peek() {
            Some(TokenKind::Punct('{')) => {
                self.expect('{')?;
                body.push(Statement::Block(self.block()?));
            }
            // Inline assembly may leave empty statements.
            Some(TokenKind::Punct(';')) => self.expect(';')?,
            Some(TokenKind::Dotted(_)) => return self.directive(body),
            Some(TokenKind::Word(_)) if self.peek_second() == Some(&TokenKind::Punct(':')) => {
                let name = self.word()?;
                self.expect(':')?;
                if self.accept_dotted(&["branchtargets"]) {
                    let mut targets = vec![self.word()?];
                    while self.accept(',') {
                        targets.push(self.word()?);
                    }
                    self.expect(';')?;
                    body.push(Statement::Targets(name, targets));
                } else {
                    body.push(Statement::Label(name));
                }
            }
            _ => body.push(Statement::Instruction(self.instruction()?)),
        }
        Ok(())
    }

    fn directive(&mut self, body: &mut Vec<Statement>) -> Result<(), Failure> {
        let TokenKind::Dotted(name) = self.next()? else { return self.fail("a directive is expected") };
        match name.as_str() {
            "reg" => body.push(Statement::Registers(self.registers()?)),
            "loc" | "file" => self.debug(&name)?,
            "pragma" => {
                self.next()?;
                self.expect(';')?;
            }
            "shared" | "local" | "param" | "global" | "const" => {
                body.extend(self.variables(&name)?.into_iter().map(Statement::Variable));
            }
            // A variable that is moved into the function keeps its linkage.
            "extern" | "visible" | "weak" => {}
            other => return self.fail(format!("the directive .{other} is not supported")),
        }
        Ok(())
    }

    fn registers(&mut self) -> Result<Vec<Register>, Failure> {
        let TokenKind::Dotted(ty) = self.next()? else { return self.fail("a type is expected") };
        let mut found = Vec::new();
        loop {
            let line = self.line();
            let name = self.word()?;
            let count = if self.accept('<') {
                let count = self.int()?;
                self.expect('>')?;
                Some(count as u32)
            } else {
                None
            };
            found.push(Register { name, count, ty: ty.clone(), line });
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(found)
    }

    fn instruction(&mut self) -> Result<Instruction, Failure> {
        let guard = if self.accept('@') {
            let negated = self.accept('!');
            Some((self.word()?, negated))
        } else {
            None
        };
        let line = self.line();
        let name = self.word()?;
        let mut modifiers = Vec::new();
        while let Some(TokenKind::Dotted(word)) = self.peek() {
            modifiers.push(word.clone());
            self.next()?;
        }
        let mut operands = Vec::new();
        while !self.accept(';') {
            if !operands.is_empty() {
                self.expect(',')?;
            }
            operands.push(self.operand()?);
        }
        Ok(Instruction { guard, name, modifiers, operands, line })
    }

    fn list(&mut self, end: char) -> Result<Vec<Operand>, Failure> {
        let mut found = Vec::new();
        while !self.accept(end) {
            if !found.is_empty() {
                self.expect(',')?;
            }
            found.push(self.operand()?);
        }
        Ok(found)
    }

    fn operand(&mut self) -> Result<Operand, Failure> {
        let first = self.single()?;
        if self.accept('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.single()?)));
        }
        Ok(first)
    }

    fn single(&mut self) -> Result<Operand, Failure> {
        Ok(match self.next()? {
            TokenKind::Word(word) if word == "_" => Operand::Sink,
            TokenKind::Word(word) => self.name(word)?,
            TokenKind::Int(value) => Operand::Int(value),
            TokenKind::F32(value) => Operand::F32(value),
            TokenKind::F64(value) => Operand::F64(value),
            TokenKind::Punct('-') => match self.next()? {
                TokenKind::Int(value) => Operand::Int(value.wrapping_neg()),
                TokenKind::F64(value) => Operand::F64((-f64::from_bits(value)).to_bits()),
                _ => return self.fail("a number is expected"),
            },
            TokenKind::Punct('!') => Operand::Not(self.word()?),
            TokenKind::Punct('~') => Operand::Int(!self.int()?),
            TokenKind::Punct('{') => Operand::Vector(self.list('}')?),
            TokenKind::Punct('(') => Operand::List(self.list(')')?),
            TokenKind::Punct('[') => self.address()?,
            _ => return self.fail("an operand is expected"),
        })
    }

    /// A name with its component (`%tid.x`) or offset (`table+4`).
    fn name(&mut self, word: String) -> Result<Operand, Failure> {
        if word.starts_with('%') {
            let component = match self.peek() {
                Some(TokenKind::Dotted(d)) if ["x", "y", "z", "w"].contains(&d.as_str()) => Some(d.clone()),
                _ => None,
            };
            if let Some(component) = component {
                self.next()?;
                return Ok(Operand::Name(format!("{word}.{component}")));
            }
        }
        let offset = self.offset()?;
        Ok(if offset == 0 { Operand::Name(word) } else { Operand::Offset(word, offset) })
    }

    fn offset(&mut self) -> Result<i64, Failure> {
        let mut offset = 0i64;
        loop {
            // A minus is read with the number.
            if self.accept('+') || self.peek() == Some(&TokenKind::Punct('-')) {
                offset = offset.wrapping_add(self.int()? as i64);
            } else {
                return Ok(offset);
            }
        }
    }

    fn address(&mut self) -> Result<Operand, Failure> {
        let (base, offset) = match self.single()? {
            Operand::Offset(name, offset) => (Operand::Name(name), offset),
            base => (base, self.offset()?),
        };
        let mut more = Vec::new();
        while self.accept(',') {
            more.push(self.operand()?);
        }
        self.expect(']')?;
        Ok(Operand::Address(Box::new(base), offset, more))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ast::{Operand, Space, Statement};
    use super::super::parser::parse;

    const HEADER: &str = ".version 8.6\n.target sm_90a\n.address_size 64\n";

    fn body(text: &str) -> Vec<Statement> {
        let mut module = parse(&format!("{HEADER}.entry k() {{ {text} }}")).unwrap();
        module.functions.remove(0).body.unwrap()
    }

    #[test]
    fn instructions_with_guards_and_operands() {
        let body = body("@!%p1 ld.global.v2.f32 {%f1, _}, [%rd1+-8]; setp.lt.and.f32 %p|%q, %f1, 0f3F800000, !%p2;");
        let [Statement::Instruction(load), Statement::Instruction(setp)] = &body[..] else { panic!("{body:?}") };
        assert_eq!(load.guard, Some(("%p1".to_owned(), true)));
        assert_eq!(load.modifiers, ["global", "v2", "f32"]);
        let name = |n: &str| Operand::Name(n.to_owned());
        assert_eq!(
            load.operands,
            [Operand::Vector(vec![name("%f1"), Operand::Sink]), Operand::Address(Box::new(name("%rd1")), -8, vec![])]
        );
        assert_eq!(setp.operands[0], Operand::Pair(Box::new(name("%p")), Box::new(name("%q"))));
        assert_eq!(setp.operands[3], Operand::Not("%p2".to_owned()));
    }

    #[test]
    fn blocks_labels_and_declarations() {
        let body = body("{ .reg .pred p; L: bra L; } .shared .align 16 .b8 s[64]; t: .branchtargets a, b;");
        let Statement::Block(inner) = &body[0] else { panic!("{body:?}") };
        assert!(matches!(&inner[1], Statement::Label(l) if l == "L"));
        let Statement::Variable(s) = &body[1] else { panic!("{body:?}") };
        assert_eq!((s.space, s.align, s.bytes), (Space::Shared, 16, Some(64)));
        assert!(matches!(&body[2], Statement::Targets(t, list) if t == "t" && list.len() == 2));
    }

    #[test]
    fn errors_have_their_line() {
        let error = parse(&format!("{HEADER}.entry k() {{\n add.s32 %r1, %r2\n}}")).unwrap_err();
        assert_eq!((error.line, error.text.as_str()), (6, "}"));
        assert_eq!(parse(&format!("{HEADER}.tex x;")).unwrap_err().line, 4);
        assert!(parse("").is_err());
    }
}
