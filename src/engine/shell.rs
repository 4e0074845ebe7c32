//! The commands of a shell script, as far as they can be told without running it.
//!
//! Enough of the POSIX grammar to read the scripts that manifests carry: quoting, line
//! continuation, operators, redirections, here-documents, parameter expansion and assignments.
//! What only running would tell (command substitution, an unset variable that the image may set)
//! becomes [`UNKNOWN`] inside the word.

use std::collections::BTreeMap;

use crate::budget::Budget;

/// Stands in a word for text that cannot be known.
pub(super) const UNKNOWN: char = '\u{FFFC}';
/// A word that stands for the script's positional parameters (`"$@"`).
pub(super) const POSITIONAL: char = '\u{FFFB}';

/// Longest script that is read; a longer one counts as not understood.
const MAX_SCRIPT: usize = 64 * 1024;
/// Longest value that a variable may grow to before it counts as unknown.
const MAX_VALUE: usize = 8 * 1024;

/// What is known of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    /// Its value.
    Known(String),
    /// It is set, to something that cannot be read.
    Unknown,
    /// Nothing that can be read sets it; the image still may.
    Unset,
}

/// One simple command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    /// Its words after expansion and quote removal, reserved words left out.
    pub(super) words: Vec<String>,
    /// Assignments in front of it.
    pub(super) assignments: Vec<(String, String)>,
    /// It stands in a branch or loop.
    pub(super) conditional: bool,
    /// It stands in a `for` loop, which may run it several times at once.
    pub(super) repeated: bool,
    /// It stands behind the definition of a function, and may be its body: `$@` may be its arguments.
    pub(super) defined: bool,
}

/// The simple commands of `script` in order; `None` where it is too long to read.
pub(super) fn commands(
    script: &str,
    lookup: &dyn Fn(&str) -> Variable,
    budget: &Budget,
) -> Option<Vec<Command>> {
    if script.len() > MAX_SCRIPT {
        return None;
    }
    budget.spend(8 * script.len());
    let mut reader = Reader {
        budget,
        chars: script.chars().collect(),
        at: 0,
        lookup,
        set: BTreeMap::new(),
        open: false,
        defined: false,
        loops: Vec::new(),
        commands: Vec::new(),
        command: Command::default(),
        word: String::new(),
        started: false,
        quoted: false,
        skip_word: false,
        documents: Vec::new(),
    };
    reader.run();
    Some(reader.commands)
}

#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a state of the reader that the others leave as it is"
)]
struct Reader<'a> {
    budget: &'a Budget,
    chars: Vec<char>,
    at: usize,
    lookup: &'a dyn Fn(&str) -> Variable,
    set: BTreeMap<String, Variable>,
    /// Something ran that may have set any variable.
    open: bool,
    /// A function was defined.
    defined: bool,
    /// The branches and loops that are open, and whether each is a `for`.
    loops: Vec<bool>,
    commands: Vec<Command>,
    command: Command,
    word: String,
    started: bool,
    quoted: bool,
    skip_word: bool,
    documents: Vec<(String, bool)>,
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn push(&mut self, c: char) {
        self.started = true;
        self.word.push(c);
    }

    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            match c {
                ' ' | '\t' | '\r' => {
                    self.at += 1;
                    self.end_word();
                }
                '\n' => {
                    self.at += 1;
                    self.end_command();
                    self.skip_documents();
                }
                '&' if self.peek(1) == Some('>') => {
                    self.at += 2;
                    self.end_word();
                    self.skip_word = true;
                }
                '(' if self.peek(1) == Some('(') && self.command.words.is_empty() => {
                    let inside = self.balanced('(', ')');
                    self.arithmetic(&inside);
                    self.end_command();
                }
                '&' | '|' | ';' | '(' | ')' => {
                    let function = c == '('
                        && self.peek(1) == Some(')')
                        && self.command.words.len() + usize::from(self.started) == 1;
                    self.defined |= function;
                    self.at += 1;
                    self.end_command();
                }
                '#' if !self.started => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                '<' | '>' => self.redirection(c),
                '\\' => {
                    match self.peek(1) {
                        Some('\n') | None => {}
                        Some(escaped) => {
                            self.quoted = true;
                            self.push(escaped);
                        }
                    }
                    self.at += 2;
                }
                '\'' => {
                    self.at += 1;
                    self.started = true;
                    self.quoted = true;
                    while let Some(c) = self.peek(0) {
                        self.at += 1;
                        if c == '\'' {
                            break;
                        }
                        self.word.push(c);
                    }
                }
                '"' => self.double_quoted(),
                '`' => {
                    self.backtick();
                    self.push(UNKNOWN);
                }
                '$' => {
                    let text = self.dollar();
                    self.split(&text);
                }
                _ => {
                    self.at += 1;
                    self.push(c);
                }
            }
        }
        self.end_command();
    }

    /// Unquoted expansion: its blanks separate words.
    fn split(&mut self, text: &str) {
        for c in text.chars() {
            if c.is_whitespace() {
                self.end_word();
            } else {
                self.push(c);
            }
        }
    }

    fn double_quoted(&mut self) {
        self.at += 1;
        self.started = true;
        self.quoted = true;
        while let Some(c) = self.peek(0) {
            match c {
                '"' => {
                    self.at += 1;
                    return;
                }
                '\\' => {
                    match self.peek(1) {
                        Some('\n') | None => {}
                        Some(e @ ('$' | '`' | '"' | '\\')) => self.word.push(e),
                        Some(e) => {
                            self.word.push('\\');
                            self.word.push(e);
                        }
                    }
                    self.at += 2;
                }
                '`' => {
                    self.backtick();
                    self.word.push(UNKNOWN);
                }
                '$' => {
                    let text = self.dollar();
                    self.word.push_str(&text);
                }
                _ => {
                    self.at += 1;
                    self.word.push(c);
                }
            }
        }
    }

    fn backtick(&mut self) {
        self.at += 1;
        while let Some(c) = self.peek(0) {
            self.at += if c == '\\' { 2 } else { 1 };
            if c == '`' {
                return;
            }
        }
    }

    /// Skips to the bracket that closes the one at hand.
    fn balanced(&mut self, open: char, close: char) -> String {
        let mut inside = String::new();
        let mut depth = 0_usize;
        while let Some(c) = self.peek(0) {
            self.at += 1;
            if c == '\\' {
                inside.push(c);
                if let Some(escaped) = self.peek(0) {
                    inside.push(escaped);
                    self.at += 1;
                }
                continue;
            }
            if c == open {
                depth += 1;
                if depth == 1 {
                    continue;
                }
            } else if c == close {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            inside.push(c);
        }
        inside
    }

    /// What the expansion that begins here stands for.
    fn dollar(&mut self) -> String {
        self.at += 1;
        match self.peek(0) {
            Some('(') => {
                self.balanced('(', ')');
                UNKNOWN.to_string()
            }
            Some('{') => {
                let inside = self.balanced('{', '}');
                self.braced(&inside)
            }
            Some('@' | '*') => {
                self.at += 1;
                POSITIONAL.to_string()
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let mut name = String::new();
                while let Some(c) = self
                    .peek(0)
                    .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
                {
                    name.push(c);
                    self.at += 1;
                }
                match self.variable(&name) {
                    Variable::Known(value) => value,
                    Variable::Unknown | Variable::Unset => UNKNOWN.to_string(),
                }
            }
            Some(c) if c.is_ascii_digit() || matches!(c, '#' | '?' | '$' | '!' | '-') => {
                self.at += 1;
                UNKNOWN.to_string()
            }
            _ => "$".to_owned(),
        }
    }

    fn braced(&mut self, inside: &str) -> String {
        if inside == "@" || inside == "*" {
            return POSITIONAL.to_string();
        }
        let end = inside
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(inside.len());
        let (name, operator) = inside.split_at(end);
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return UNKNOWN.to_string();
        }
        let value = self.variable(name);
        if operator.is_empty() {
            return match value {
                Variable::Known(value) => value,
                Variable::Unknown | Variable::Unset => UNKNOWN.to_string(),
            };
        }
        let (operator, colon) = match operator.strip_prefix(':') {
            Some(rest) => (rest, true),
            None => (operator, false),
        };
        let mut rest = operator.chars();
        let kind = rest.next();
        let word = rest.as_str();
        let missing = match &value {
            Variable::Known(value) => colon && value.is_empty(),
            Variable::Unknown => false,
            Variable::Unset => true,
        };
        match kind {
            Some('-' | '=') if missing => {
                let default = self.plain(word);
                if kind == Some('=') {
                    self.assign(name, &default);
                }
                default
            }
            Some('-' | '=' | '?') => match value {
                Variable::Known(value) => value,
                Variable::Unknown | Variable::Unset => UNKNOWN.to_string(),
            },
            Some('+') => match value {
                Variable::Known(_) if !missing => self.plain(word),
                _ => UNKNOWN.to_string(),
            },
            _ => UNKNOWN.to_string(),
        }
    }

    /// The word of a `${NAME:-word}`, itself expanded where it is one plain value.
    fn plain(&mut self, word: &str) -> String {
        let word = word.trim_matches(|c| c == '"' || c == '\'');
        let name = word
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'))
            .or_else(|| word.strip_prefix('$'));
        if let Some(name) = name.filter(|name| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        }) {
            return match self.variable(name) {
                Variable::Known(value) => value,
                Variable::Unknown | Variable::Unset => UNKNOWN.to_string(),
            };
        }
        if word.contains(['$', '`']) {
            UNKNOWN.to_string()
        } else {
            word.to_owned()
        }
    }

    fn variable(&self, name: &str) -> Variable {
        if self.budget.is_spent() {
            return Variable::Unknown;
        }
        let value = match self.set.get(name) {
            Some(value) => value.clone(),
            None if self.open => Variable::Unknown,
            None => (self.lookup)(name),
        };
        if let Variable::Known(text) = &value {
            // It is put into a word, and looked through there.
            self.budget.spend(8 * text.len());
        }
        value
    }

    /// The names that an arithmetic command sets hold numbers that only running tells.
    fn arithmetic(&mut self, text: &str) {
        let compared = text
            .replace("==", "")
            .replace("!=", "")
            .replace("<=", "")
            .replace(">=", "");
        if !compared.contains('=') && !text.contains("++") && !text.contains("--") {
            return;
        }
        for name in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &str) {
        if is_name(name) {
            self.set.insert(name.to_owned(), Variable::Unknown);
        }
    }

    /// What a command of the shell's own does to variables, beside the assignments that it is given.
    fn run_builtin(&mut self, words: &[String]) {
        let Some((program, operands)) = words.split_first() else {
            return;
        };
        match program.as_str() {
            "source" | "." | "eval" => {
                let file = operands.first().map_or("", String::as_str);
                // What only prepares paths.
                let harmless = [
                    "activate", "conda.sh", "profile", ".profile", ".bashrc", "bashrc",
                ];
                let name = file.rsplit('/').next().unwrap_or_default();
                if program == "eval" || !harmless.contains(&name) {
                    self.set.clear();
                    self.open = true;
                }
            }
            "read" | "getopts" | "mapfile" | "readarray" => {
                for name in operands {
                    self.forget(name);
                }
            }
            "let" => self.arithmetic(&operands.join(" ")),
            "printf" if operands.first().is_some_and(|option| option == "-v") => {
                self.forget(operands.get(1).map_or("", String::as_str));
            }
            "unset" => {
                for name in operands.iter().filter(|name| is_name(name)) {
                    self.set.insert(name.clone(), Variable::Unset);
                }
            }
            _ => {}
        }
    }

    fn assign(&mut self, name: &str, value: &str) {
        let new = if value.contains(UNKNOWN) || value.len() > MAX_VALUE {
            Variable::Unknown
        } else {
            Variable::Known(value.to_owned())
        };
        // In a branch it may or may not happen.
        let new = if !self.loops.is_empty() && self.variable(name) != new {
            Variable::Unknown
        } else {
            new
        };
        self.set.insert(name.to_owned(), new);
    }

    fn redirection(&mut self, first: char) {
        if self.word.chars().all(|c| c.is_ascii_digit()) {
            self.word.clear();
            self.started = false;
            self.quoted = false;
        }
        self.end_word();
        self.at += 1;
        if first == '<' && self.peek(0) == Some('<') && self.peek(1) != Some('<') {
            self.at += 1;
            let strip = self.peek(0) == Some('-');
            if strip {
                self.at += 1;
            }
            while matches!(self.peek(0), Some(' ' | '\t')) {
                self.at += 1;
            }
            let mut delimiter = String::new();
            while let Some(c) = self
                .peek(0)
                .filter(|c| !c.is_whitespace() && !";|&<>()".contains(*c))
            {
                if !matches!(c, '\'' | '"' | '\\') {
                    delimiter.push(c);
                }
                self.at += 1;
            }
            self.documents.push((delimiter, strip));
            return;
        }
        while matches!(self.peek(0), Some('>' | '<' | '&' | '|')) {
            self.at += 1;
        }
        self.skip_word = true;
    }

    fn skip_documents(&mut self) {
        for (delimiter, strip) in std::mem::take(&mut self.documents) {
            loop {
                let mut line = String::new();
                let mut ended = true;
                while let Some(c) = self.peek(0) {
                    self.at += 1;
                    if c == '\n' {
                        ended = false;
                        break;
                    }
                    line.push(c);
                }
                let text = if strip {
                    line.trim_start_matches('\t')
                } else {
                    line.as_str()
                };
                if text.trim_end_matches('\r') == delimiter || ended {
                    break;
                }
            }
        }
    }

    fn end_word(&mut self) {
        if !self.started {
            return;
        }
        self.started = false;
        let word = std::mem::take(&mut self.word);
        let quoted = std::mem::take(&mut self.quoted);
        if std::mem::take(&mut self.skip_word) {
            return;
        }
        if self.command.words.is_empty() && !quoted {
            match word.as_str() {
                "if" | "while" | "until" | "for" | "case" | "select" => {
                    self.loops.push(word == "for");
                    // The words of a `for` or `case` head are no command.
                    if matches!(word.as_str(), "for" | "case" | "select") {
                        self.command.words.push(word);
                    }
                    return;
                }
                "fi" | "done" | "esac" => {
                    self.loops.pop();
                    return;
                }
                "function" => {
                    self.defined = true;
                    // Its name.
                    self.skip_word = true;
                    return;
                }
                "then" | "else" | "elif" | "do" | "{" | "}" | "!" | "time" => return,
                _ => {}
            }
        }
        if self.command.words.is_empty()
            && let Some((name, value)) = assignment(&word)
        {
            self.command
                .assignments
                .push((name.to_owned(), value.to_owned()));
            return;
        }
        self.command.words.push(word);
    }

    fn end_command(&mut self) {
        self.end_word();
        self.skip_word = false;
        let mut command = std::mem::take(&mut self.command);
        command.conditional = !self.loops.is_empty();
        command.repeated = self.loops.contains(&true);
        command.defined = self.defined;
        if command.words.is_empty() {
            for (name, value) in command.assignments {
                self.assign(&name, &value);
            }
            return;
        }
        if matches!(
            command.words.first().map(String::as_str),
            Some("export" | "declare" | "local" | "readonly" | "typeset")
        ) {
            for word in command.words.iter().skip(1) {
                if let Some((name, value)) = assignment(word) {
                    self.assign(name, value);
                } else if word.contains(UNKNOWN) {
                    // As of `export $(cat file)`.
                    self.set.clear();
                    self.open = true;
                }
            }
            return;
        }
        if matches!(
            command.words.first().map(String::as_str),
            Some("for" | "case" | "select")
        ) {
            if let Some(name) = command.words.get(1) {
                self.set.insert(name.clone(), Variable::Unknown);
            }
            return;
        }
        self.run_builtin(&command.words);
        self.commands.push(command);
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    is_name(name).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(script: &str) -> Vec<Vec<String>> {
        let lookup = |name: &str| match name {
            "TP" => Variable::Known("8".into()),
            "ARGS" => Variable::Known("-tp 4 -pp 2".into()),
            "SECRET" => Variable::Unknown,
            _ => Variable::Unset,
        };
        commands(script, &lookup, &Budget::default())
            .unwrap()
            .into_iter()
            .map(|c| c.words)
            .collect()
    }

    fn one(script: &str) -> String {
        words(script)
            .first()
            .map(|w| w.join(" "))
            .unwrap_or_default()
    }

    #[test]
    fn continued_lines_are_one_command() {
        assert_eq!(
            one("exec vllm serve m \\\n  -tp 8"),
            "exec vllm serve m -tp 8"
        );
    }

    #[test]
    fn operators_separate_commands() {
        assert_eq!(words("a 1 && b 2; c | d &\ne").len(), 5);
    }

    #[test]
    fn variables_are_expanded_and_split_unless_quoted() {
        assert_eq!(words("v $ARGS"), [vec!["v", "-tp", "4", "-pp", "2"]]);
        assert_eq!(words("v \"$ARGS\""), [vec!["v", "-tp 4 -pp 2"]]);
        assert_eq!(words("v '$ARGS'"), [vec!["v", "$ARGS"]]);
        assert_eq!(one("v ${NONE:-2} ${TP:-2} ${NONE:-$TP}"), "v 2 8 8");
        assert_eq!(
            one("v $SECRET ${SECRET:-2}"),
            format!("v {UNKNOWN} {UNKNOWN}")
        );
    }

    #[test]
    fn what_only_running_tells_is_unknown() {
        assert_eq!(
            one("v -tp $(nproc (x)) -pp `nproc`"),
            format!("v -tp {UNKNOWN} -pp {UNKNOWN}")
        );
        assert_eq!(one("v $UNSET"), format!("v {UNKNOWN}"));
    }

    #[test]
    fn assignments_count_from_where_they_stand() {
        assert_eq!(one("N=4; export M=2\nv $N $M"), "v 4 2");
        assert_eq!(one("if x; then TP=2; fi; v $TP"), "x");
        assert_eq!(
            words("if x; then TP=2; fi; v $TP")[1],
            ["v", &UNKNOWN.to_string()]
        );
    }

    #[test]
    fn here_documents_and_redirections_are_no_words() {
        assert_eq!(
            words("cat <<'EOF' > /tmp/x\ntp: 8 ; vllm serve\nEOF\nv a 2>&1 >log"),
            [vec!["cat"], vec!["v", "a"]]
        );
    }

    #[test]
    fn what_others_may_set_is_unknown_from_there_on() {
        for set in [
            "source /etc/env",
            ". /etc/env",
            "eval \"$(cat /etc/env)\"",
            "export $(cat /etc/env | xargs)",
            "read -r N < /etc/n",
            "let N=N/2",
            "(( N /= 2 ))",
            "printf -v N %d 4",
        ] {
            for first in ["N=8", ":"] {
                let all = words(&format!("{first}; {set}; v ${{N:-8}}"));
                assert_eq!(
                    all.last().unwrap()[1],
                    UNKNOWN.to_string(),
                    "{first}; {set}"
                );
            }
        }
        for kept in [
            "source /opt/venv/bin/activate",
            "(( N == 4 ))",
            "printf %d 4",
        ] {
            let all = words(&format!("N=8; {kept}; v $N"));
            assert_eq!(all.last().unwrap()[1], "8", "{kept}");
        }
        assert_eq!(words("N=8; unset N; v ${N:-2}").last().unwrap()[1], "2");
    }

    #[test]
    fn loops_and_bodies_of_functions_are_marked() {
        let lookup = |_: &str| Variable::Unset;
        let all = |script: &str| commands(script, &lookup, &Budget::default()).unwrap();
        let last = |script: &str| all(script).pop().unwrap();
        assert!(last("for i in 0 1; do v $i & done").repeated);
        assert!(!last("for i in 0 1; do v; done; w").repeated);
        assert!(!last("while true; do v; done").repeated);
        assert!(last("f() { v \"$@\"; }").defined);
        assert!(last("function f { v \"$@\"; }").defined);
        assert!(!last("v \"$@\"; (w)").defined);
    }

    #[test]
    fn branches_are_marked() {
        let lookup = |_: &str| Variable::Unset;
        let all = commands(
            "if t; then v -tp 8; else v -tp 4; fi; w",
            &lookup,
            &Budget::default(),
        )
        .unwrap();
        assert_eq!(
            all.iter().map(|c| c.conditional).collect::<Vec<_>>(),
            [true, true, true, false]
        );
    }

    #[test]
    fn broken_scripts_end_without_panic() {
        for script in [
            "\"", "'", "${", "$(", "`", "\\", "<<", "a <<EOF", "$", "${}", "${:-}", ">",
        ] {
            let _ = words(script);
        }
    }
}
