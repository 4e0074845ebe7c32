//! The fuzz targets without a fuzzer: over their seeds, and over seeds that are damaged a settled
//! number of times. What libFuzzer finds (`.ci/fuzz`) becomes a seed.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use gangplank::text::hash;
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};

use self::targets::TARGETS;

/// How many damaged seeds each target gets.
const DAMAGED: usize = 400;

/// Nothing grows beyond this, in bytes.
const LONGEST: usize = 16 * 1024;

fn folder(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fuzz").join(name)
}

/// A target's seeds, by name.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = folder("seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| {
        panic!("{}: {error}", folder.display());
    });
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    if target == "yaml" {
        let fixtures = gangplank::rules::RULES
            .iter()
            .flat_map(|rule| crate::fixtures::fixtures(rule.id));
        seeds.extend(fixtures.map(|(_, text)| text.into_bytes()));
    }
    seeds
}

/// The words of the targets' languages, which no bit that flips makes.
fn words() -> Vec<String> {
    let text = fs::read_to_string(folder("words.dict")).unwrap();
    let quoted = |line: &str| {
        Some(
            line.strip_prefix('"')?
                .strip_suffix('"')?
                .replace("\\\"", "\""),
        )
    };
    text.lines().filter_map(quoted).collect()
}

struct Damage<'a> {
    rng: TestRng,
    seeds: &'a [Vec<u8>],
    words: &'a [String],
}

impl Damage<'_> {
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.rng.next_u64() % end.max(1) as u64).unwrap()
    }

    fn seed(&mut self) -> Vec<u8> {
        let index = self.below(self.seeds.len());
        self.seeds[index].clone()
    }

    /// A seed with up to four faults.
    fn next(&mut self) -> Vec<u8> {
        let mut data = self.seed();
        for _ in 0..=self.below(4) {
            let from = self.below(data.len() + 1);
            let length = self.below(40.min(data.len() - from + 1));
            let part = data[from..from + length].to_vec();
            let put: Vec<u8> = match self.below(8) {
                0 => Vec::new(),
                1 => part.repeat(2 + self.below(200)),
                2 => part.iter().map(|byte| byte ^ (1 << (byte % 7))).collect(),
                3 => vec![self.rng.next_u64().to_le_bytes()[0]; 1 + self.below(3)],
                4 | 5 => {
                    let index = self.below(self.words.len());
                    self.words[index].clone().into_bytes()
                }
                6 => {
                    let other = self.seed();
                    let start = self.below(other.len());
                    other[start..].to_vec()
                }
                _ => {
                    data.truncate(from);
                    continue;
                }
            };
            data.splice(from..from + length, put);
            data.truncate(LONGEST);
        }
        data
    }
}

/// The name of a target is that of its test, so that each is a thread of its own.
fn run(name: &str) {
    let number = |variable: &str, default: usize| {
        env::var(variable).map_or(default, |text| text.parse().unwrap())
    };
    let (seed, damaged) = (number("FUZZ_SEED", 0), number("FUZZ_EXECUTIONS", DAMAGED));
    let artifacts = folder("artifacts").join(name);
    fs::create_dir_all(&artifacts).unwrap();
    // Of what ends the whole process, as a stack that overflows, this is all that is left.
    let running = artifacts.join("running");
    let check = |data: &[u8]| {
        fs::write(&running, data).unwrap();
        if catch_unwind(AssertUnwindSafe(|| targets::run(name, data))).is_err() {
            let file = artifacts.join(hash(&String::from_utf8_lossy(data)));
            fs::rename(&running, &file).unwrap();
            panic!(
                "FUZZ_SEED={seed}: {name} fails on {0}; once it is mended: cp {0} {1}/<what it is>",
                file.display(),
                folder("seeds").join(name).display()
            );
        }
    };
    let seeds = seeds(name);
    for seed in &seeds {
        check(seed);
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(seed as u64).to_le_bytes());
    let mut damage = Damage {
        rng: TestRng::from_seed(RngAlgorithm::ChaCha, &key),
        seeds: &seeds,
        words: &words(),
    };
    for _ in 0..damaged {
        check(&damage.next());
    }
    fs::remove_file(&running).unwrap();
}

/// What is not optimised takes ten times the stack: as much of it as the main thread has.
fn on_a_deep_stack(run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(8 << 20);
    if let Err(panic) = thread.spawn(run).unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn argv() {
    on_a_deep_stack(|| run("argv"));
}

#[test]
fn envelope() {
    on_a_deep_stack(|| run("envelope"));
}

#[test]
fn exemption() {
    on_a_deep_stack(|| run("exemption"));
}

#[test]
fn policy() {
    on_a_deep_stack(|| run("policy"));
}

#[test]
fn query() {
    on_a_deep_stack(|| run("query"));
}

#[test]
fn yaml() {
    on_a_deep_stack(|| run("yaml"));
}

#[test]
fn every_target_is_run_and_built() {
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    let here = include_str!("fuzz.rs");
    for (name, _) in TARGETS {
        assert!(here.contains(&format!("run(\"{name}\"))")), "{name}");
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        assert!(seeds(name).len() >= 20, "{name} has few seeds");
    }
}
