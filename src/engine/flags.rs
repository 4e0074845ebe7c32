//! Reads an engine's flags as its own parser does.

use std::collections::BTreeMap;

use crate::{
    catalog::engines::{Dialect, Engine, Setting},
    subject::pod_template::Count,
};

use super::{Origin, UNKNOWN, Word, basename, degree};

/// A number that was read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) count: Count,
    pub(super) origin: Origin,
}

/// An engine's command line.
#[derive(Default)]
pub(super) struct Line {
    numbers: BTreeMap<Setting, Reading>,
    words: BTreeMap<Setting, (String, Origin)>,
    /// A flag that only an engine of several nodes is given.
    pub(super) evidence: Option<(String, Origin)>,
    /// Ranks are placed by Ray, possibly on other pods.
    pub(super) ray: Option<(String, Origin)>,
    /// A word that nobody can read stands where flags may be, as `$EXTRA_ARGS`.
    pub(super) open: bool,
    /// The files with more settings that are named; none where a name is no text.
    pub(super) files: Vec<(Option<String>, Origin)>,
}

/// What a spelling stands for.
#[derive(Clone, Copy)]
enum Meaning {
    Number(Setting),
    Switch(Setting),
    Evidence,
    Config,
    Other,
}

impl Line {
    pub(super) fn get(&self, setting: Setting) -> Option<&Reading> {
        self.numbers.get(&setting)
    }

    pub(super) fn has(&self, setting: Setting) -> bool {
        self.words.contains_key(&setting)
    }

    pub(super) fn word(&self, setting: Setting) -> Option<(&str, Origin)> {
        self.words
            .get(&setting)
            .map(|(text, origin)| (text.as_str(), *origin))
    }

    pub(super) fn read(engine: &Engine, words: &[Word]) -> Self {
        let table = table(engine);
        let mut line = Self::default();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            let before = at.checked_sub(1).and_then(|before| words.get(before));
            at += 1;
            if word.text.contains(UNKNOWN) && word.text.chars().all(|c| c == UNKNOWN) {
                // The first may be the model, and what follows a flag its value.
                let value = before.is_none_or(|before| {
                    before.text.starts_with('-') && !before.text.contains('=')
                });
                line.open |= !value;
                continue;
            }
            if word.text == "--" {
                break;
            }
            if !word.text.starts_with('-') || word.text.len() < 2 {
                continue;
            }
            let Some((meaning, spelling, attached)) = meaning(engine.dialect, &table, &word.text)
            else {
                continue;
            };
            let next = words.get(at);
            // The value is the next word, unless that is a flag itself.
            let value = attached.clone().or_else(|| {
                next.map(|word| word.text.clone())
                    .filter(|text| !text.starts_with("--"))
            });
            match meaning {
                Meaning::Number(setting) => {
                    if attached.is_none() && value.is_some() {
                        at += 1;
                    }
                    let text = value.unwrap_or_default();
                    // torchrun counts a range of nodes by its lower end until more arrive.
                    let count = if setting == Setting::Shutdown {
                        text.parse().map_or(Count::Unknown, Count::Known)
                    } else if setting == Setting::Nodes && text.contains(':') {
                        Count::Unknown
                    } else {
                        degree(&text)
                    };
                    line.numbers.insert(
                        setting,
                        Reading {
                            count,
                            origin: word.origin,
                        },
                    );
                }
                Meaning::Switch(Setting::Ray) => {
                    let by_ray = match spelling {
                        "--distributed-executor-backend" => value.as_deref() == Some("ray"),
                        _ => true,
                    };
                    if by_ray {
                        let text = value.filter(|_| spelling.ends_with("backend"));
                        let text = text.map_or(spelling.to_owned(), |v| format!("{spelling} {v}"));
                        line.ray = Some((text, word.origin));
                    }
                }
                Meaning::Switch(setting) => {
                    let text = value.unwrap_or_default();
                    line.words.insert(setting, (text, word.origin));
                }
                Meaning::Evidence => line.evidence = Some((spelling.to_owned(), word.origin)),
                Meaning::Config => {
                    let path = value.filter(|path| !path.is_empty() && !path.contains(UNKNOWN));
                    line.files.push((path, word.origin));
                }
                Meaning::Other => {}
            }
        }
        line
    }
}

fn table(engine: &Engine) -> Vec<(&str, Meaning)> {
    let mut all = Vec::new();
    for (setting, spellings) in &engine.flags {
        all.extend(
            spellings
                .iter()
                .map(|s| (s.as_str(), Meaning::Number(*setting))),
        );
    }
    for (setting, spellings) in &engine.switches {
        all.extend(
            spellings
                .iter()
                .map(|s| (s.as_str(), Meaning::Switch(*setting))),
        );
    }
    all.extend(
        engine
            .evidence
            .iter()
            .map(|s| (s.as_str(), Meaning::Evidence)),
    );
    all.extend(
        engine
            .config_flags
            .iter()
            .map(|s| (s.as_str(), Meaning::Config)),
    );
    all.extend(engine.others.iter().map(|s| (s.as_str(), Meaning::Other)));
    all
}

/// What a word stands for, its full spelling, and the value attached to it.
fn meaning<'t>(
    dialect: Dialect,
    table: &[(&'t str, Meaning)],
    word: &str,
) -> Option<(Meaning, &'t str, Option<String>)> {
    let (flag, attached) = match word.split_once('=') {
        Some((flag, value)) => (flag, Some(value.to_owned())),
        None => (word, None),
    };
    if flag.contains(UNKNOWN) {
        return None;
    }
    let flag = normal(dialect, flag);
    if let Some((spelling, meaning)) = table.iter().find(|(spelling, _)| *spelling == flag) {
        return Some((*meaning, spelling, attached));
    }
    if dialect == Dialect::Exact {
        return None;
    }
    // argparse: a short option of one letter takes what follows it at once; else the spellings
    // that begin so must be one.
    if !flag.starts_with("--") {
        let letter = flag.get(..2)?;
        if let Some((spelling, meaning)) = table.iter().find(|(spelling, _)| *spelling == letter) {
            return Some((*meaning, spelling, word.get(2..).map(str::to_owned)));
        }
    }
    let mut matching = table
        .iter()
        .filter(|(spelling, _)| spelling.starts_with(flag.as_str()));
    let (spelling, meaning) = matching.next()?;
    // Two spellings of one option are not ambiguous to a reader who only wants the meaning, but
    // they are to argparse; it refuses and the engine does not start.
    matching
        .next()
        .is_none()
        .then_some((*meaning, *spelling, attached))
}

fn normal(dialect: Dialect, flag: &str) -> String {
    if dialect == Dialect::Vllm && flag.starts_with("--") {
        flag.replace('_', "-")
    } else {
        flag.to_owned()
    }
}

/// Whether a word of a command line is this flag.
pub(super) fn names(dialect: Dialect, word: &str, flag: &str) -> bool {
    normal(dialect, word.split('=').next().unwrap_or_default()) == flag
}

/// The number of processes that `mpirun`, `mpiexec` or `srun` is told to start.
pub(super) fn processes(words: &[Word]) -> Option<Reading> {
    let spellings: &[&str] = match words.first().map(|word| basename(&word.text)) {
        Some("srun") => &["-n", "--ntasks"],
        _ => &["-n", "-np", "--np", "-c"],
    };
    words.iter().enumerate().skip(1).find_map(|(index, word)| {
        let (flag, attached) = match word.text.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (word.text.as_str(), None),
        };
        spellings.contains(&flag).then_some(())?;
        let value = attached.or_else(|| words.get(index + 1).map(|word| word.text.as_str()))?;
        Some(Reading {
            count: degree(value),
            origin: word.origin,
        })
    })
}
