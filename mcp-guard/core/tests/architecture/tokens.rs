//! Rust text as words and signs, without comments, literals and test code.

/// A word (`repair`, `use`), `::`, or one other sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// Returns the tokens of a file, in order.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { text: text.chars().collect(), at: 0, line: 1, found: Vec::new() };
    while lexer.at < lexer.text.len() {
        lexer.next();
    }
    without_tests(&lexer.found)
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    line: usize,
    found: Vec<Token>,
}

impl Lexer {
    fn next(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => self.skip_while(|sign| sign != '\n'),
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(),
            ('\'', _) => self.char_or_lifetime(),
            (sign, _) if is_word(sign) => self.word(),
            (sign, _) if sign.is_whitespace() => self.skip(1),
            (':', ':') => self.push(2),
            _ => self.push(1),
        }
    }

    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.line += usize::from(self.peek(0) == '\n');
            self.at += 1;
        }
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.at < self.text.len() && wanted(self.peek(0)) {
            self.skip(1);
        }
    }

    fn push(&mut self, count: usize) {
        let text = self.text[self.at..self.at + count].iter().collect();
        self.found.push(Token { text, line: self.line });
        self.skip(count);
    }

    /// Skips a block comment. Block comments nest.
    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.skip(1);
                    continue;
                }
            }
            self.skip(2);
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.skip(1);
        while self.at < self.text.len() && self.peek(0) != '"' {
            self.skip(if self.peek(0) == '\\' { 2 } else { 1 });
        }
        self.skip(1);
    }

    /// Skips a raw string. The position is at its `#` or its quote.
    fn raw_string(&mut self) {
        let start = self.at;
        self.skip_while(|sign| sign == '#');
        let hashes = self.at - start;
        self.skip(1);
        while self.at < self.text.len() {
            let ends = self.peek(0) == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == '#');
            self.skip(1);
            if ends {
                self.skip(hashes);
                return;
            }
        }
    }

    fn char_or_lifetime(&mut self) {
        if self.peek(1) == '\\' {
            self.skip(3);
            self.skip_while(|sign| sign != '\'');
            self.skip(1);
        } else if self.peek(2) == '\'' {
            self.skip(3);
        } else {
            self.skip(1);
            self.skip_while(is_word);
        }
    }

    fn word(&mut self) {
        let length = (0..).take_while(|&ahead| is_word(self.peek(ahead))).count();
        let word: String = self.text[self.at..self.at + length].iter().collect();
        match (word.as_str(), self.peek(length), self.peek(length + 1)) {
            ("r" | "br" | "cr", '"', _) | ("r" | "br" | "cr", '#', '"' | '#') => {
                self.skip(length);
                self.raw_string();
            }
            // A raw name, such as `r#where`.
            ("r", '#', _) => self.skip(2),
            _ => self.push(length),
        }
    }
}

fn is_word(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

/// Removes each item that follows `#[cfg(test)]`.
fn without_tests(all: &[Token]) -> Vec<Token> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < all.len() {
        let marked = all[at..].iter().map(|token| token.text.as_str()).take(7).eq(MARK);
        if marked {
            at += MARK.len() + item_length(&all[at + MARK.len()..]);
        } else {
            kept.push(all[at].clone());
            at += 1;
        }
    }
    kept
}

/// Returns the length of the first item. It ends with its semicolon or with the brace that closes its body.
fn item_length(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && (token.text == ";" || token.text == "}") {
            return at + 1;
        }
        // The end of the block that contains the item.
        if depth < 0 {
            return at;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    fn words(text: &str) -> String {
        let tokens = super::tokens(text);
        tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_give_no_tokens() {
        assert_eq!(words("a // crate::b\n/* crate::c /* d */ e */ f"), "a f");
        assert_eq!(words(r##"a("crate::b", r#"c "d" e"#, b"f", 'g', '"', '\'', '\u{41}')"##), {
            "a ( , , b , , , , )"
        });
        assert_eq!(words("fn a<'b>(c: &'b str)"), "fn a < > ( c : & str )");
        assert_eq!(words("r#where::x"), "where :: x");
    }

    #[test]
    fn test_code_gives_no_tokens() {
        assert_eq!(words("a\n#[cfg(test)]\nmod tests { fn b() { c } }\nd"), "a d");
        assert_eq!(words("#[cfg(test)] mod tests; a"), "a");
        assert_eq!(words("#[cfg(test)] #[allow(b)] const C: [u8; 2] = [0; 2]; a"), "a");
        assert_eq!(words("#[cfg(unix)] mod a;"), "# [ cfg ( unix ) ] mod a ;");
    }

    #[test]
    fn lines_are_counted() {
        let tokens = super::tokens("a \"\n\n\" b /*\n*/ c");
        let lines: Vec<usize> = tokens.iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 3, 4]);
    }
}
