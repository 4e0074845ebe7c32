//! `gangplank check --fix` and `--diff`: what becomes of files, and what is never touched.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::check::{folder, gangplank};

const POOL: &str = "# Bought by the platform team.
apiVersion: karpenter.sh/v1
kind: NodePool
metadata:
    name: gpu   # see the runbook
spec:
    limits: {nvidia.com/gpu: 8}
    disruption: {} # nothing yet
    template:
        spec:
            expireAfter: Never
            nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
            requirements:
              # Hopper only.
              - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5, p4d]}
            # taints: none
";

const FIXED: &str = "# Bought by the platform team.
apiVersion: karpenter.sh/v1
kind: NodePool
metadata:
    name: gpu   # see the runbook
spec:
    limits: {nvidia.com/gpu: 8}
    disruption: # nothing yet
        consolidateAfter: 1h
        consolidationPolicy: WhenEmpty
    template:
        spec:
            expireAfter: Never
            nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
            requirements:
              # Hopper only.
              - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5, p4d]}
            taints:
              - effect: NoSchedule
                key: nvidia.com/gpu
                value: present
            # taints: none
";

/// A document of another kind, in a style of its own.
const OTHER: &str = "apiVersion:   v1\nkind: ConfigMap\nmetadata: { name : 'x' }\ndata: {k: |-\n";

fn other() -> String {
    OTHER.replace("{k: |-\n", "\n  k: |+\n    text # no comment\n\n\n")
}

fn check(folder: &Path, args: &[&str]) -> Output {
    gangplank(folder).arg("check").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn fills_are_written_and_everything_else_stays() {
    let stream = format!("{}---\n{POOL}---\n{}", other(), other());
    let folder = folder(&[("apps/pool.yaml", stream.as_bytes())]);
    let output = check(folder.path(), &["--fix", "apps"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        read(folder.path(), "apps/pool.yaml"),
        format!("{}---\n{FIXED}---\n{}", other(), other())
    );
    insta::assert_snapshot!(
        "fix",
        format!("{}\n{}", text(&output.stdout), text(&output.stderr))
    );
    // Nothing is left to do, and nothing is done.
    let before = fs::metadata(folder.path().join("apps/pool.yaml")).unwrap();
    let again = check(folder.path(), &["--fix", "apps"]);
    let after = fs::metadata(folder.path().join("apps/pool.yaml")).unwrap();
    assert_eq!((again.status.code(), text(&again.stderr)), (Some(0), ""));
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert_eq!(again.stdout, output.stdout);
}

#[test]
fn every_fixture_that_is_filled_is_fixed_for_good() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut fixed = 0;
    for rule in fs::read_dir(fixtures).unwrap() {
        let rule = rule.unwrap().path();
        for file in fs::read_dir(&rule).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("fill-") {
                continue;
            }
            let own = rule.join(format!("policy-{name}"));
            let policy = [own, rule.join("policy.yaml")];
            let policy = policy.iter().find(|path| path.is_file());
            let before = fs::read_to_string(&file).unwrap();
            let folder = folder(&[("it.yaml", before.as_bytes())]);
            let run = || {
                let mut command = gangplank(folder.path());
                command.args(["check", "-o", "json", "--fix", "it.yaml"]);
                if let Some(policy) = policy {
                    command.arg("--policy").arg(policy);
                }
                let output = command.output().unwrap();
                let report: Value = serde_json::from_slice(&output.stdout).unwrap();
                (report, text(&output.stderr).to_owned())
            };
            let (report, said) = run();
            assert_eq!(
                report["summary"]["errors"],
                0,
                "{}: {report:#}",
                file.display()
            );
            assert_eq!(report["summary"]["filled"], 0, "{}: {said}", file.display());
            let after = read(folder.path(), "it.yaml");
            fixed += usize::from(after != before);
            for line in before.lines().filter(|line| line.contains('#')) {
                let comment = line.split_once('#').unwrap().1;
                assert!(after.contains(comment), "{}: {comment}", file.display());
            }
            let (again, said) = run();
            assert_eq!((&again, said.as_str()), (&report, ""), "{}", file.display());
            assert_eq!(read(folder.path(), "it.yaml"), after);
        }
    }
    assert!(fixed >= 5, "{fixed} fixtures are filled");
}

#[test]
fn the_difference_is_shown_and_applies() {
    let folder = folder(&[
        ("apps/pool.yaml", POOL.as_bytes()),
        ("fine.yaml", other().as_bytes()),
    ]);
    let output = check(folder.path(), &["--diff", ".", "apps/pool.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        read(folder.path(), "apps/pool.yaml"),
        POOL,
        "nothing is written"
    );
    insta::assert_snapshot!("fix-diff", text(&output.stdout));
    assert!(
        text(&output.stderr).contains("3 objects"),
        "the report stands aside"
    );
    let mut apply = Command::new("git")
        .args(["apply", "-"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut apply.stdin.take().unwrap(), &output.stdout).unwrap();
    assert!(apply.wait().unwrap().success());
    assert_eq!(read(folder.path(), "apps/pool.yaml"), FIXED);

    fs::write(folder.path().join("apps/pool.yaml"), POOL).unwrap();
    let both = check(folder.path(), &["--fix", "--diff", "."]);
    assert_eq!(both.stdout, output.stdout);
    assert_eq!(read(folder.path(), "apps/pool.yaml"), FIXED);
    let none = check(folder.path(), &["--diff", "."]);
    assert_eq!((none.status.code(), text(&none.stdout)), (Some(0), ""));
}

#[test]
fn standard_input_is_fixed_on_standard_output() {
    let folder = folder(&[]);
    let run = |args: &[&str], input: &str| {
        let output = gangplank(folder.path())
            .arg("check")
            .args(args)
            .arg("-")
            .write_stdin(input)
            .output()
            .unwrap();
        let code = output.status.code().unwrap();
        let stdout = text(&output.stdout).to_owned();
        (code, stdout, text(&output.stderr).to_owned())
    };
    let (code, stdout, stderr) = run(&["--fix"], POOL);
    assert_eq!((code, stdout.as_str()), (0, FIXED));
    assert!(stderr.contains("1 object: 0 denied"), "{stderr}");
    let (code, stdout, _) = run(&["--fix"], FIXED);
    assert_eq!((code, stdout.as_str()), (0, FIXED), "what is fine passes");
    let (code, stdout, _) = run(&["--diff"], POOL);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("--- a/-\n+++ b/-\n"), "{stdout}");
    let (code, stdout, stderr) = run(&["--fix", "--diff"], POOL);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("use one of them"), "{stderr}");
}

#[test]
fn what_is_shared_is_left_and_said() {
    let shared = POOL
        .replace("disruption: {} # nothing yet", "disruption: *none")
        .replace("spec:\n    limits", "x-none: &none {}\nspec:\n    limits");
    let folder = folder(&[("pool.yaml", shared.as_bytes())]);
    let output = check(folder.path(), &["--fix", "pool.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stderr),
        "gangplank: pool.yaml:2: NodePool gpu is left as it is: spec.disruption is the alias *none: \
         change what it stands for\n"
    );
    assert_eq!(read(folder.path(), "pool.yaml"), shared);
    assert!(
        text(&output.stdout).contains("1 filled"),
        "it is filled in the cluster"
    );
}

#[test]
fn the_verdict_is_that_of_the_fixed_files() {
    let evicting = POOL.replace(
        "{} # nothing yet",
        "{consolidationPolicy: WhenEmptyOrUnderutilized}",
    );
    let folder = folder(&[("pool.yaml", evicting.as_bytes()), ("broken.yaml", b"a: [")]);
    let output = check(folder.path(), &["-o", "json", "--fix", "pool.yaml"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "what somebody wrote is not mended"
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["summary"]["denied"], &report["summary"]["filled"]),
        (&1.into(), &0.into())
    );
    assert_eq!(report["results"][0]["patch"], serde_json::json!([]));
    let fixed = read(folder.path(), "pool.yaml");
    assert!(
        fixed.contains("{consolidationPolicy: WhenEmptyOrUnderutilized"),
        "{fixed}"
    );
    assert_ne!(fixed, evicting);
    let output = check(folder.path(), &["--fix", "."]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(read(folder.path(), "broken.yaml"), "a: [");
}

#[cfg(unix)]
#[test]
fn files_keep_their_mode_links_and_byte_order_mark() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let marked = format!("\u{feff}{}", POOL.replace('\n', "\r\n"));
    let folder = folder(&[
        ("real/pool.yaml", marked.as_bytes()),
        ("locked.yaml", POOL.as_bytes()),
    ]);
    let at = |name: &str| folder.path().join(name);
    fs::set_permissions(at("real/pool.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(at("locked.yaml"), fs::Permissions::from_mode(0o444)).unwrap();
    symlink("real/pool.yaml", at("link.yaml")).unwrap();
    let output = check(folder.path(), &["--fix", "link.yaml", "real/pool.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(at("link.yaml").is_symlink());
    assert_eq!(
        read(folder.path(), "real/pool.yaml"),
        format!("\u{feff}{}", FIXED.replace('\n', "\r\n"))
    );
    let mode = fs::metadata(at("real/pool.yaml"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
    let left: Vec<_> = fs::read_dir(at("real"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["pool.yaml"], "no temporary file stays");

    let output = check(folder.path(), &["-o", "json", "--fix", "locked.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["summary"]["filled"], 1,
        "the verdict is on what is there"
    );
    let error = &report["results"][1]["error"]["message"];
    assert_eq!(error, "locked.yaml: cannot be fixed: it is read-only");
    assert_eq!(read(folder.path(), "locked.yaml"), POOL);
}

/// The file is replaced by a rename of a whole one: what was open before is never seen half written.
#[cfg(unix)]
#[test]
fn a_file_is_replaced_whole() {
    use std::{io::Read, os::unix::fs::MetadataExt};

    let folder = folder(&[("pool.yaml", POOL.as_bytes())]);
    let path = folder.path().join("pool.yaml");
    let mut open = fs::File::open(&path).unwrap();
    assert!(
        check(folder.path(), &["--fix", "pool.yaml"])
            .status
            .success()
    );
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old, POOL);
    assert_ne!(
        open.metadata().unwrap().ino(),
        fs::metadata(&path).unwrap().ino()
    );
    assert_eq!(read(folder.path(), "pool.yaml"), FIXED);
}

#[test]
fn patterns_and_the_ignore_file_choose_files() {
    let folder = folder(&[
        (
            ".gangplankignore",
            b"# made by others\nvendor/\n*.gen.yaml\n!keep.gen.yaml\n",
        ),
        ("apps/a/pool.yaml", POOL.as_bytes()),
        ("apps/a/x.gen.yaml", b"a: ["),
        ("apps/a/keep.gen.yaml", POOL.as_bytes()),
        ("apps/b/pool.yml", POOL.as_bytes()),
        ("apps/vendor/pool.yaml", b"a: ["),
        ("apps/readme.md", b"x"),
        ("pool-[1].yaml", POOL.as_bytes()),
    ]);
    let files = |args: &[&str]| -> Vec<String> {
        let output = gangplank(folder.path())
            .args(["check", "-o", "json"])
            .args(args)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let results = report["results"].as_array().unwrap().iter();
        results
            .map(|result| result["file"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = [
        "apps/a/keep.gen.yaml",
        "apps/a/pool.yaml",
        "apps/b/pool.yml",
    ];
    assert_eq!(files(&["apps"]), all);
    assert_eq!(files(&["apps/**/*"]), all);
    assert_eq!(
        files(&["apps/*/"]),
        all,
        "a folder stands for what is in it"
    );
    assert_eq!(files(&["apps/*/*.yaml"]), &all[..2]);
    assert_eq!(
        files(&["./{apps,none}/?/pool.y*"]),
        ["./apps/a/pool.yaml", "./apps/b/pool.yml"]
    );
    assert_eq!(
        files(&["pool-[1].yaml"]),
        ["pool-[1].yaml"],
        "a name that is there is no pattern"
    );
    assert_eq!(
        files(&["apps/a/x.gen.yaml"]),
        ["apps/a/x.gen.yaml"],
        "what is named is read"
    );
    let output = check(folder.path(), &["apps/*/*.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("apps/*/*.json: no manifest has such a name"));
}

#[test]
fn the_hooks_of_pre_commit_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hooks = read(root, ".pre-commit-hooks.yaml");
    let hooks = gangplank::source::read(&hooks).remove(0).unwrap().value;
    let hooks = hooks.as_array().unwrap().clone();
    assert_eq!(hooks.len(), 2);
    for hook in hooks {
        let folder = folder(&[("apps/pool.yaml", POOL.as_bytes())]);
        let entry = shlex::split(hook["entry"].as_str().unwrap()).unwrap();
        let args = hook["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap());
        assert_eq!(entry[0], "gangplank");
        let output = gangplank(folder.path())
            .args(&entry[1..])
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(hook["pass_filenames"], false, "all manifests are one world");
        let fixes = hook["id"] == "gangplank-fix";
        assert_eq!(
            read(folder.path(), "apps/pool.yaml"),
            if fixes { FIXED } else { POOL }
        );
    }
}
