//! The language of configuration files, as gnatsd reads it.
//!
//! A file is a map: keys and values with `=`, `:` or blanks between them, ended by newlines, `,` or
//! `;`. Values are booleans, numbers with units, strings with or without quotes, `$VARIABLES`,
//! arrays and maps; JSON is a special case. Unlike the original, what is left open is an error, and
//! nesting is bounded.

use std::cell::Cell;
use std::collections::hash_map::{Entry as Slot, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const DEPTH_MAX: usize = 32;
const TOO_DEEP: &str = "inside each other";
/// So many bytes variables may stand for in all. Each line of a file can double what the ones before it stand for.
/// Tests and fuzzing reach it with less.
const COPIED_MAX: usize = if cfg!(any(test, fuzzing)) {
    4 << 20
} else {
    256 << 20
};

#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    pub file: Rc<str>,
    pub line: u32,
    pub column: u32,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Array(Vec<Value>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub data: Data,
    pub at: Position,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub at: Position,
    pub value: Value,
    /// A `$variable` took its value from here, so it need not be an option.
    pub used: Cell<bool>,
}

/// What there is to tell about a file, each with its place.
#[derive(Debug, Default)]
pub struct Found {
    pub errors: Vec<(Position, String)>,
    pub warnings: Vec<(Position, String)>,
}

impl Found {
    pub fn error(&mut self, at: &Position, text: String) {
        self.errors.push((at.clone(), text));
    }

    pub fn warn(&mut self, at: &Position, text: String) {
        self.warnings.push((at.clone(), text));
    }

    /// Errors and warnings as lines, in the order of the file, then of those it includes. `strict`: all are errors.
    pub fn told(mut self, path: &Path, strict: bool) -> (Vec<String>, Vec<String>) {
        if strict {
            self.errors.append(&mut self.warnings);
        }
        let main = path.display().to_string();
        let lines = |mut told: Vec<(Position, String)>| {
            let mut files: Vec<Rc<str>> = vec![main.as_str().into()];
            for (at, _) in &told {
                if !files.contains(&at.file) {
                    files.push(at.file.clone());
                }
            }
            told.sort_by_key(|(at, _)| {
                let file = files.iter().position(|file| *file == at.file);
                (file, at.line, at.column)
            });
            let line = |(at, text)| format!("{at}: {text}");
            told.into_iter().map(line).collect()
        };
        (lines(self.errors), lines(self.warnings))
    }
}

impl Value {
    /// For messages: what stands there.
    pub fn kind(&self) -> &'static str {
        match self.data {
            Data::Bool(_) => "a boolean",
            Data::Int(_) => "an integer",
            Data::Float(_) => "a number",
            Data::Text(_) => "a string",
            Data::Array(_) => "an array",
            Data::Map(_) => "a map",
        }
    }

    /// How many blocks and lists are inside each other in it, this one too, and about how much memory it takes.
    fn extent(&self) -> (usize, usize) {
        let around = |(depth, bytes): (usize, usize), (inner, more): (usize, usize)| {
            (depth.max(inner + 1), bytes + more)
        };
        let own = size_of::<Self>();
        match &self.data {
            Data::Bool(_) | Data::Int(_) | Data::Float(_) => (0, own),
            Data::Text(text) => (0, own + text.len()),
            Data::Array(values) => values.iter().map(Self::extent).fold((1, own), around),
            Data::Map(entries) => {
                let named = entries.iter().map(|entry| {
                    let (depth, bytes) = entry.value.extent();
                    (depth, size_of::<Entry>() - own + entry.key.len() + bytes)
                });
                named.fold((1, own), around)
            }
        }
    }
}

/// Reads a file and everything it includes.
pub fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let mut scopes = Scopes::new();
    read_into(path, &mut scopes, 0)?;
    Ok(scopes.pop())
}

/// Reads a text as if it were the file of that name.
pub fn read_text(text: &str, name: &str) -> Result<Vec<Entry>, String> {
    let mut scopes = Scopes::new();
    Reader::new(text, name, PathBuf::new(), 0).document(&mut scopes)?;
    Ok(scopes.pop())
}

/// Of blocks and lists with the same key only the last counts, as in the original, where it overwrites the
/// others; nothing of them is merged. Each of those that do not count is warned about: it may be one of an
/// included file that was to be overridden, or a mistake that takes users away.
pub fn keep_last(entries: &mut Vec<Entry>, found: &mut Found) {
    let several = |entry: &Entry| matches!(entry.value.data, Data::Map(_) | Data::Array(_));
    let mut later: HashMap<String, Position> = HashMap::new();
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut ignored = Vec::new();
    for entry in std::mem::take(entries).into_iter().rev() {
        if several(&entry) {
            match later.entry(entry.key.to_ascii_lowercase()) {
                Slot::Vacant(place) => drop(place.insert(entry.at.clone())),
                Slot::Occupied(place) => {
                    if !entry.used.get() {
                        let (at, key, place) = (&entry.at, &entry.key, place.get());
                        ignored.push((at.clone(), format!(
                            "{key:?} is ignored here: it is given again at {place}, and the last one counts"
                        )));
                    }
                    continue;
                }
            }
        }
        kept.push(entry);
    }
    found.warnings.extend(ignored.into_iter().rev());
    kept.reverse();
    kept.iter_mut()
        .for_each(|entry| keep_last_inside(&mut entry.value, found));
    *entries = kept;
}

fn keep_last_inside(value: &mut Value, found: &mut Found) {
    match &mut value.data {
        Data::Map(entries) => keep_last(entries, found),
        Data::Array(values) => values
            .iter_mut()
            .for_each(|value| keep_last_inside(value, found)),
        _ => {}
    }
}

fn read_into(path: &Path, scopes: &mut Scopes, depth: usize) -> Result<(), String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".into(),
            _ => error.to_string(),
        };
        format!("error opening config file: open {shown}: {reason}")
    })?;
    let (text, replaced) = lossy(&bytes);
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut reader = Reader::new(
        text.trim_start_matches('\u{feff}'),
        &shown.to_string(),
        folder,
        depth,
    );
    reader.replaced = replaced;
    let read = reader.document(scopes);
    // An error at such a byte says less.
    reader.note_not_utf8();
    match &reader.not_utf8 {
        Some(at) => reader.error(at, "a byte that is not UTF-8"),
        None => read,
    }
}

/// The text, with U+FFFD where bytes are not UTF-8, and how much of the text there is from each of those on, in bytes.
fn lossy(bytes: &[u8]) -> (String, Vec<usize>) {
    let (mut text, mut starts) = (String::with_capacity(bytes.len()), Vec::new());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            starts.push(text.len());
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    let rests = starts.iter().map(|start| text.len() - start).collect();
    (text, rests)
}

struct Reader<'a> {
    rest: std::str::Chars<'a>,
    file: Rc<str>,
    folder: PathBuf,
    line: u32,
    column: u32,
    depth: usize,
    /// What is being read is the value of a key that holds a secret: no message may show it.
    secret: bool,
    /// Where bytes that are not UTF-8 stood, by how much of the text there is from there on, falling. In comments, of an old
    /// encoding, they do not matter.
    replaced: Vec<usize>,
    /// The first of them elsewhere.
    not_utf8: Option<Position>,
}

/// Keys whose values are secrets, in any block.
const SECRET_KEYS: [&str; 4] = ["password", "pass", "token", "auth_token"];

/// The maps around the place being read: where variables are looked up.
struct Scopes {
    /// Outermost first; there is always one.
    maps: Vec<Vec<Entry>>,
    /// What variables have stood for so far, in bytes.
    copied: usize,
}

impl Scopes {
    fn new() -> Self {
        Self {
            maps: vec![Vec::new()],
            copied: 0,
        }
    }

    fn pop(&mut self) -> Vec<Entry> {
        self.maps.pop().expect("there is always one")
    }
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, name: &str, folder: PathBuf, depth: usize) -> Self {
        Self {
            rest: text.chars(),
            file: name.into(),
            folder,
            line: 1,
            column: 1,
            depth,
            secret: false,
            replaced: Vec::new(),
            not_utf8: None,
        }
    }

    fn at(&self) -> Position {
        Position {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
        }
    }

    fn error<T>(&self, at: &Position, text: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("{at}: Parse error on line {}: '{text}'", at.line))
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn starts_with(&self, text: &str) -> bool {
        self.rest.as_str().starts_with(text)
    }

    fn next(&mut self) -> Option<char> {
        self.note_not_utf8();
        self.step()
    }

    fn note_not_utf8(&mut self) {
        let left = self.rest.as_str().len();
        let is_replaced = |at: &Vec<usize>| at.binary_search_by(|one| left.cmp(one)).is_ok();
        if self.not_utf8.is_none() && !self.replaced.is_empty() && is_replaced(&self.replaced) {
            self.not_utf8 = Some(self.at());
        }
    }

    fn step(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn skip_comment(&mut self) -> bool {
        if !self.starts_with("#") && !self.starts_with("//") {
            return false;
        }
        while self.peek().is_some_and(|c| c != '\n') {
            self.step();
        }
        true
    }

    /// Skips blanks and comments, and with `lines` newlines as well.
    fn skip(&mut self, lines: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r') => drop(self.next()),
                Some('\n') if lines => drop(self.next()),
                _ if self.skip_comment() => {}
                _ => return,
            }
        }
    }

    /// A whole file; its entries go to the innermost scope.
    fn document(&mut self, scopes: &mut Scopes) -> Result<(), String> {
        if self.depth > DEPTH_MAX {
            return self.error(
                &self.at(),
                format!("more than {DEPTH_MAX} files or blocks {TOO_DEEP}"),
            );
        }
        let mut opened = None;
        loop {
            self.skip(true);
            let at = self.at();
            match self.peek() {
                None => break,
                Some(',' | ';') => drop(self.next()),
                // The whole document may stand in braces, as JSON does.
                Some('{') if opened.is_none() => {
                    opened = Some(at);
                    self.next();
                }
                Some('}') if opened.is_some() => {
                    opened = None;
                    self.next();
                }
                Some(_) => self.entry(scopes)?,
            }
        }
        match opened {
            Some(at) => self.error(&at, "a '{' without its '}'"),
            None => Ok(()),
        }
    }

    fn entry(&mut self, scopes: &mut Scopes) -> Result<(), String> {
        let at = self.at();
        let quoted = matches!(self.peek(), Some('"' | '\''));
        let key = self.key()?;
        let includes = !quoted && key.eq_ignore_ascii_case("include");
        if includes && matches!(self.peek(), Some(' ' | '\t')) {
            return self.include(&at, scopes);
        }
        self.skip(false);
        if matches!(self.peek(), Some('=' | ':')) {
            self.next();
            self.skip(false);
            if self.peek() == Some('\n') && scopes.maps.len() == 1 {
                return self.error(
                    &at,
                    format!("Expected value but found new line after {key}"),
                );
            }
        }
        self.skip(true);
        self.secret = SECRET_KEYS.contains(&key.to_ascii_lowercase().as_str());
        let value = self.value(scopes)?;
        self.end_of_value()?;
        self.secret = false;
        let scope = scopes.maps.last_mut().expect("there is always one");
        let used = Cell::new(false);
        scope.push(Entry {
            key,
            at,
            value,
            used,
        });
        Ok(())
    }

    fn key(&mut self) -> Result<String, String> {
        let at = self.at();
        match self.peek() {
            Some('"') => return self.double_quoted(),
            Some('\'') => return self.single_quoted(),
            Some('=' | ':') => return self.error(&at, "a value without a key"),
            _ => {}
        }
        let mut key = String::new();
        while let Some(c) = self.peek() {
            if c.is_whitespace() || matches!(c, '=' | ':' | '{') {
                break;
            }
            key.push(c);
            self.next();
        }
        match key.is_empty() {
            true => self.error(&at, "expected a key"),
            false => Ok(key),
        }
    }

    fn include(&mut self, at: &Position, scopes: &mut Scopes) -> Result<(), String> {
        self.skip(false);
        let path = match self.value(scopes)?.data {
            Data::Text(path) => path,
            _ => return self.error(at, "expected the path of a file to include"),
        };
        self.end_of_value()?;
        // Always relative to this file, even when it begins with a slash: as the original.
        let full = self.folder.join(path.trim_start_matches('/'));
        read_into(&full, scopes, self.depth + 1).map_err(|error| match error.contains(TOO_DEEP) {
            // Most likely a file that includes itself: how often need not be shown.
            true => error,
            false => format!("{at}: Error parsing include file '{path}', {error}."),
        })
    }

    fn end_of_value(&mut self) -> Result<(), String> {
        self.skip(false);
        match self.peek() {
            None | Some('\n' | ',' | ';' | '}' | ']') => Ok(()),
            Some(c) => {
                let at = self.at();
                let c = if self.secret { '*' } else { c };
                self.error(
                    &at,
                    format!("Expected the end of the value, but got '{c}' instead."),
                )
            }
        }
    }

    fn value(&mut self, scopes: &mut Scopes) -> Result<Value, String> {
        let at = self.at();
        self.check_depth(&at, scopes, 0)?;
        let data = match self.peek() {
            None => return self.error(&at, "expected a value, but the file ends"),
            Some('{') => self.map(scopes)?,
            Some('[') => self.array(scopes)?,
            Some('"') => Data::Text(self.double_quoted()?),
            Some('\'') => Data::Text(self.single_quoted()?),
            Some('(') => Data::Text(self.block_text()?),
            Some(',' | ';' | ']' | '}') => return self.error(&at, "expected a value"),
            Some('$') if !self.starts_with("$2a$") => return self.variable(scopes),
            Some(_) => self.bare()?,
        };
        Ok(Value { data, at })
    }

    /// For a value with so many blocks and lists inside each other.
    fn check_depth(&self, at: &Position, scopes: &Scopes, more: usize) -> Result<(), String> {
        match self.depth + scopes.maps.len() + more > DEPTH_MAX {
            true => self.error(
                at,
                format!("more than {DEPTH_MAX} files or blocks {TOO_DEEP}"),
            ),
            false => Ok(()),
        }
    }

    fn map(&mut self, scopes: &mut Scopes) -> Result<Data, String> {
        let at = self.at();
        self.next();
        scopes.maps.push(Vec::new());
        loop {
            self.skip(true);
            match self.peek() {
                None => return self.error(&at, "a '{' without its '}'"),
                Some('}') => break,
                Some(',' | ';') => drop(self.next()),
                Some(_) => self.entry(scopes)?,
            }
        }
        self.next();
        Ok(Data::Map(scopes.pop()))
    }

    fn array(&mut self, scopes: &mut Scopes) -> Result<Data, String> {
        let at = self.at();
        self.next();
        // Takes part in the bound on nesting.
        scopes.maps.push(Vec::new());
        let mut values = Vec::new();
        loop {
            self.skip(true);
            match self.peek() {
                None => return self.error(&at, "a '[' without its ']'"),
                Some(']') => break,
                Some(',') => drop(self.next()),
                Some(_) => {
                    values.push(self.value(scopes)?);
                    self.end_of_value()?;
                }
            }
        }
        self.next();
        scopes.pop();
        Ok(Data::Array(values))
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let at = self.at();
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                None => return self.error(&at, "a string without its closing quote"),
                Some('\'') => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let at = self.at();
        self.next();
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None => return self.error(&at, "a string without its closing quote"),
                Some('"') => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Some('\\') => self.escape(&mut bytes)?,
                Some(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let at = self.at();
        match self.next() {
            Some('n') => bytes.push(b'\n'),
            Some('t') => bytes.push(b'\t'),
            Some('r') => bytes.push(b'\r'),
            Some(c @ ('"' | '\\')) => bytes.push(c as u8),
            Some('x') => {
                let digits: String = self.next().into_iter().chain(self.next()).collect();
                match u8::from_str_radix(&digits, 16) {
                    Ok(byte) if digits.len() == 2 => bytes.push(byte),
                    _ => {
                        return self.error(
                            &at,
                            format!("Expected two hexadecimal digits, but got '{digits}'"),
                        );
                    }
                }
            }
            other => {
                let shown = other.map_or("the end of the file".into(), |c| c.to_string());
                return self.error(
                    &at,
                    format!("Invalid escape character '{shown}'. Only the following escape characters are allowed: \\xXX, \\t, \\n, \\r, \\\", \\\\."),
                );
            }
        }
        Ok(())
    }

    /// `(` up to a line that holds `)` alone.
    fn block_text(&mut self) -> Result<String, String> {
        let at = self.at();
        self.next();
        let mut text = String::new();
        let mut line = String::new();
        loop {
            match self.peek() {
                // The newline is left where it is: it ends the value.
                None | Some('\n') if line.trim_end() == ")" => return Ok(text),
                None => return self.error(&at, "a '(' without a ')' on a line of its own"),
                Some(c) => {
                    self.next();
                    line.push(c);
                    if c == '\n' {
                        text.push_str(&std::mem::take(&mut line));
                    }
                }
            }
        }
    }

    /// Text without quotes: a boolean, a number, or a string.
    fn bare(&mut self) -> Result<Data, String> {
        let at = self.at();
        let mut bytes = Vec::new();
        while let Some(c) = self.peek() {
            if c.is_whitespace() || matches!(c, ',' | ';' | ']' | '}' | '\'') {
                break;
            }
            // Behind a number a comment needs no blank; in a string, such as a path, it does.
            let comment = c == '#' || self.starts_with("//");
            if comment && std::str::from_utf8(&bytes).is_ok_and(|text| number(text).is_some()) {
                break;
            }
            self.next();
            match c {
                '\\' => self.escape(&mut bytes)?,
                c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if self.peek() == Some('\'') {
            self.next();
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => return Ok(Data::Bool(true)),
            "false" | "no" | "off" => return Ok(Data::Bool(false)),
            _ => {}
        }
        let digits = text.strip_prefix('-').unwrap_or(&text);
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Data::Text(text));
        }
        if let Some(data) = number(&text) {
            return Ok(data);
        }
        let unit = digits.trim_start_matches(|c: char| c.is_ascii_digit());
        let too_large = integer(&format!("1{unit}")).is_some();
        let text = if self.secret { "***" } else { &text };
        if too_large {
            return self.error(&at, format!("Integer '{text}' is out of the range."));
        }
        self.error(&at, format!("Expected a number or an address, but got '{text}' instead; put strings that begin with a digit in quotes"))
    }

    fn variable(&mut self, scopes: &mut Scopes) -> Result<Value, String> {
        let at = self.at();
        self.next();
        let Data::Text(name) = self.bare().unwrap_or(Data::Text(String::new())) else {
            return self.error(&at, "expected the name of a variable");
        };
        let named = |entry: &&Entry| entry.key == name;
        let mut maps = scopes.maps.iter().rev();
        if let Some(entry) = maps.find_map(|map| map.iter().rev().find(named)) {
            entry.used.set(true);
            let (depth, bytes) = entry.value.extent();
            self.check_depth(&at, scopes, depth)?;
            scopes.copied += bytes;
            self.check_copied(&at, scopes, &name)?;
            return Ok(entry.value.clone());
        }
        let Ok(text) = std::env::var(&name) else {
            return self.error(
                &at,
                format!(
                    "Variable reference for '{name}' on line {} can not be found.",
                    at.line
                ),
            );
        };
        self.of_environment(&name, &text, at, scopes)
    }

    fn check_copied(&self, at: &Position, scopes: &Scopes, name: &str) -> Result<(), String> {
        let most = COPIED_MAX >> 20;
        match scopes.copied > COPIED_MAX {
            true => self.error(
                at,
                format!("with '${name}' the variables stand for more than {most} MiB in all"),
            ),
            false => Ok(()),
        }
    }

    /// A text of the environment is read as if it stood in the file, as in the original. It must be one value
    /// and nothing else: cut off at its first blank, a password would be another, shorter one. What stands
    /// behind a `,` or a `;` the original takes no notice of; here that is an error too.
    fn of_environment(
        &self,
        name: &str,
        text: &str,
        at: Position,
        scopes: &mut Scopes,
    ) -> Result<Value, String> {
        scopes.copied += text.len();
        self.check_copied(&at, scopes, name)?;
        // Blanks alone: a `#` may be the first letter of a password.
        let text = text.trim_start_matches([' ', '\t']);
        let mut reader = Reader::new(
            text,
            &format!("${name}"),
            PathBuf::new(),
            self.depth + scopes.maps.len(),
        );
        reader.secret = self.secret;
        // It sees no variables of the file.
        let around = std::mem::replace(&mut scopes.maps, vec![Vec::new()]);
        let value = reader.value(scopes);
        scopes.maps = around;
        let mut value = value?;
        reader.skip(true);
        if reader.peek().is_some() {
            return self.error(
                &at,
                format!(
                    "the environment variable '{name}' holds more than one value; \
                     a text with blanks or quotes in it needs double quotes around it, inside the variable"
                ),
            );
        }
        value.at = at;
        Ok(value)
    }
}

/// What begins with a digit and needs no quotes: numbers, addresses, and the one form of dates there is.
fn number(text: &str) -> Option<Data> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if let Some(number) = integer(text) {
        return Some(Data::Int(number));
    }
    let dots = digits.matches('.').count();
    let only = |extra: &str| {
        digits
            .chars()
            .all(|c| c.is_ascii_digit() || extra.contains(c))
    };
    if dots == 1
        && only(".")
        && !digits.ends_with('.')
        && let Ok(number) = text.parse()
    {
        return Some(Data::Float(number));
    }
    let address = dots > 1 && only(".:");
    let date = digits.ends_with('Z') && only("-:TZ");
    (address || date).then(|| Data::Text(text.to_owned()))
}

/// Digits with an optional unit: k, m and g count by 1000, kb, mb and gb by 1024.
pub fn integer(text: &str) -> Option<i64> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: i64 = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(factor)
}

/// Any text: an error or a tree, and what the options make of that; never a panic.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(mut entries) = read_text(&text, "fuzz") {
        let deepest = entries.iter().map(|entry| entry.value.extent().0).max();
        assert!(deepest <= Some(DEPTH_MAX), "{deepest:?}");
        let mut options = super::Options::default();
        let mut found = Found::default();
        keep_last(&mut entries, &mut found);
        super::table::apply(&mut options, &entries, &mut found, false);
        let readers = super::streaming::Readers::Us;
        super::streaming::apply_file(&mut options, &entries, &mut found, true, readers);
        found.told(Path::new("fuzz"), false);
        let _ = options.check_credentials();
        options.put_defaults();
        let _ = options.check();
        options.remarks();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        fn data(value: &Data) -> String {
            match value {
                Data::Bool(b) => b.to_string(),
                Data::Int(n) => n.to_string(),
                Data::Float(n) => format!("{n:?}"),
                Data::Text(t) => format!("{t:?}"),
                Data::Array(values) => {
                    format!(
                        "[{}]",
                        values
                            .iter()
                            .map(|v| data(&v.data))
                            .collect::<Vec<_>>()
                            .join(" ")
                    )
                }
                Data::Map(entries) => format!("{{{}}}", all(entries)),
            }
        }
        fn all(entries: &[Entry]) -> String {
            entries
                .iter()
                .map(|e| format!("{}={}", e.key, data(&e.value.data)))
                .collect::<Vec<_>>()
                .join(" ")
        }
        match read_text(text, "t") {
            Ok(entries) => all(&entries),
            Err(error) => error,
        }
    }

    #[test]
    fn comments_may_be_of_an_old_encoding() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.conf");
        let read_bytes = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path).map(|entries| entries.len())
        };
        assert_eq!(read_bytes(b"# f\xfcr\na = 1 // f\xfcr\nb = 2"), Ok(2));
        let real = "a = 'a real \u{fffd}' #".as_bytes();
        assert_eq!(
            read_bytes(&[b"\xef\xbb\xbf# \xfc\n", real, b"\xfc\n"].concat()),
            Ok(1)
        );
        for text in [
            &b"a = 'f\xfcr'"[..],
            b"a = 1\xfc # f\xfcr",
            b"\xfc = 1",
            b"a = (\n\xfc\n)\n",
            b"a = 'x'\xfc",
            b"a \xfc 1",
        ] {
            let error = read_bytes(text).unwrap_err();
            assert!(error.contains("a byte that is not UTF-8"), "{error}");
        }
    }

    #[test]
    fn the_language() {
        for (text, expect) in [
            ("a = 1\nb: two\nc 3.5", r#"a=1 b="two" c=3.5"#),
            ("a=1kb;b=2M,c=-3 # end\n// more", "a=1024 b=2000000 c=-3"),
            ("a: yes\nb: OFF\nc: \"true\"", r#"a=true b=false c="true""#),
            (
                "x { y = 1, z [1, 'a b', {q: r}] }",
                r#"x={y=1 z=[1 "a b" {q="r"}]}"#,
            ),
            ("{\"a\": 1, \"b\": [true,]}", "a=1 b=[true]"),
            (
                "l: 127.0.0.1:4222\nd 2016-05-04T18:53:41Z",
                r#"l="127.0.0.1:4222" d="2016-05-04T18:53:41Z""#,
            ),
            ("p: /a#b\nq: $2a$11$abc", r#"p="/a#b" q="$2a$11$abc""#),
            ("a: 5\nb: $a\nc { a: 6, d: $a }", "a=5 b=5 c={a=6 d=6}"),
            ("s: \"a\\x41\\n\\\"\"", r#"s="aA\n\"""#),
            ("listen\n 4222", "listen=4222"),
            ("b (\nline\n)\nc 1", r#"b="\nline\n" c=1"#),
            ("a b\r\nc d\r\n", r#"a="b" c="d""#),
            (
                "a: 1# x\nb: 1kb// x\nc 1.5#x\nd [1#x\n-2//x\n]\ne {f: 3#}\n}",
                "a=1 b=1024 c=1.5 d=[1 -2] e={f=3}",
            ),
            (
                "l: 127.0.0.1:4222#x\nd 2016-05-04T18:53:41Z//x\np: a#b\nu: a//b",
                r#"l="127.0.0.1:4222" d="2016-05-04T18:53:41Z" p="a#b" u="a//b""#,
            ),
        ] {
            assert_eq!(show(text), expect, "{text}");
        }
    }

    #[test]
    fn includes_in_any_case() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        std::fs::write(folder.path().join("more"), "debug: true").unwrap();
        for word in ["include", "Include", "INCLUDE"] {
            std::fs::write(&path, format!("{word} 'more'\nport: 5")).unwrap();
            let keys: Vec<String> = read(&path).unwrap().into_iter().map(|e| e.key).collect();
            assert_eq!(keys, ["debug", "port"], "{word}");
        }
        assert_eq!(
            show("'Include' x\nINCLUDE: y"),
            r#"Include="x" INCLUDE="y""#
        );
    }

    #[test]
    fn of_blocks_with_one_key_the_last_counts() {
        let text = "tls { a: 1 }\nport: 1\nCluster { b: 1 }\nport: 2\n\
            cluster { c: 1, tls { d: 1 }, routes: [x], tls { e: 1 }, routes: [] }\nV { u: 1 }";
        let mut entries = read_text(text, "t").unwrap();
        let mut found = Found::default();
        keep_last(&mut entries, &mut found);
        let (_, warnings) = found.told(Path::new("t"), false);
        let keys: Vec<&str> = entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!(keys, ["tls", "port", "port", "cluster", "V"]);
        let Data::Map(cluster) = &entries[3].value.data else {
            panic!("{entries:?}")
        };
        let inner: Vec<u32> = cluster.iter().map(|entry| entry.at.column).collect();
        assert_eq!(inner, [11, 44, 58], "the first one of each has gone");
        assert_eq!(
            warnings,
            [
                "t:3:1: \"Cluster\" is ignored here: it is given again at t:5:1, and the last one counts",
                "t:5:17: \"tls\" is ignored here: it is given again at t:5:44, and the last one counts",
                "t:5:31: \"routes\" is ignored here: it is given again at t:5:58, and the last one counts",
            ]
        );
    }

    #[test]
    fn errors_name_file_line_and_column() {
        for (text, expect) in [
            (
                "a 1 2",
                "t:1:5: Parse error on line 1: 'Expected the end of the value, but got '2' instead.'",
            ),
            (
                "\n= 5",
                "t:2:1: Parse error on line 2: 'a value without a key'",
            ),
            (
                "a: [1, 2",
                "t:1:4: Parse error on line 1: 'a '[' without its ']''",
            ),
            (
                "a {\n b 1",
                "t:1:3: Parse error on line 1: 'a '{' without its '}''",
            ),
            (
                "a: 'x",
                "t:1:4: Parse error on line 1: 'a string without its closing quote'",
            ),
            (
                "a: 1abc",
                "t:1:4: Parse error on line 1: 'Expected a number or an address, but got '1abc' instead; put strings that begin with a digit in quotes'",
            ),
            (
                "a = $NO_SUCH_THING",
                "t:1:5: Parse error on line 1: 'Variable reference for 'NO_SUCH_THING' on line 1 can not be found.'",
            ),
        ] {
            assert_eq!(show(text), expect, "{text}");
        }
        assert!(show(&"a {".repeat(100)).contains("inside each other"));
    }

    #[test]
    fn variables_of_variables_are_bounded() {
        let lines = |first: &str, of: &str| {
            let next = |n: usize| format!("v{} {}\n", n + 1, of.replace('$', &format!("$v{n}")));
            format!("v0 {first}\n{}", (0..100).map(next).collect::<String>())
        };
        let deep = show(&lines("1", "[$]"));
        assert!(deep.contains("inside each other"), "{deep}");
        assert!(deep.starts_with("t:33:"), "{deep}");
        for twice in ["[$, $]", "{ a: $, b: $ }"] {
            let first = format!("\"{}\"", "x".repeat(1 << 16));
            let large = show(&lines(&first, twice));
            assert!(
                large.contains("the variables stand for more than 4 MiB in all"),
                "{large}"
            );
        }
        assert!(show("a [1, 2]\nb [$a, $a]").ends_with("b=[[1 2] [1 2]]"));
    }

    #[test]
    fn a_text_of_the_environment_is_one_value_or_an_error() {
        let read = |text: &str| {
            let mut reader = Reader::new("", "t", PathBuf::new(), 0);
            reader.secret = true;
            let value = reader.of_environment("PASS", text, reader.at(), &mut Scopes::new());
            value.map(|value| value.data)
        };
        for (text, expect) in [
            ("abc", "abc"),
            (" \t abc \r\n", "abc"),
            ("'correct horse battery'", "correct horse battery"),
            ("\"it's\"\n", "it's"),
            ("#abc", "#abc"),
            ("abc # a comment", "abc"),
            ("$2a$11$abc", "$2a$11$abc"),
        ] {
            assert_eq!(read(text), Ok(Data::Text(expect.into())), "{text:?}");
        }
        assert_eq!(read(" 12kb"), Ok(Data::Int(12 << 10)));
        for text in [
            "correct horse battery",
            "it's",
            "'a' horse",
            "a\nhorse",
            "horse,b",
            "horse;",
            "horse}",
        ] {
            let error = read(text).unwrap_err();
            let begin = "t:1:1: Parse error on line 1: 'the environment variable 'PASS' holds more";
            assert!(error.starts_with(begin), "{text:?}: {error}");
            assert!(!error.contains("horse"), "{error}");
        }
        for text in ["", "   "] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("$PASS:1:1: "), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ab{}\\[\\]=:;,\"'$#/0-9.\\\\\\n()-]{0,60}") {
            fuzz(text.as_bytes());
        }

        #[test]
        fn any_value_of_an_option_is_taken_or_refused(
            values in proptest::collection::vec((0usize..1000, "[-]?[0-9]{1,20}(kb|gb|s|ms|h)?|[0-9]{1,25}\\.[0-9](s|h)?|\"[0-9]{1,25}h\"|[a-z.:*>\\[\\]{}', @$/]{0,12}|\"[^\"\\\\]{0,9}\""), 0..6)
        ) {
            let keys: Vec<&str> = crate::config::table::rows().map(|row| row.key).collect();
            let mut text = String::new();
            for (index, value) in values {
                let key = keys[index % keys.len()];
                let blocks: Vec<&str> = key.split('.').collect();
                text += &blocks.join(" { ");
                text += &format!(": {value}\n{}", "}\n".repeat(blocks.len() - 1));
            }
            fuzz(text.as_bytes());
        }
    }
}
