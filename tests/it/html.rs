//! The report as a page: what stands in it, and what a real browser makes of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{check::gangplank, formats::manifests};

/// The page of a run over manifests with everything in them, and where it was written to.
fn page(folder: &Path) -> (String, PathBuf) {
    let output = gangplank(folder)
        .args(["check", "live", "-o", "html"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "a document is broken");
    let page = String::from_utf8(output.stdout).unwrap();
    let path = folder.join("report.html");
    fs::write(&path, &page).unwrap();
    (page, path)
}

#[test]
fn the_page_is_whole_and_asks_for_nothing() {
    let folder = manifests();
    let (page, _) = page(folder.path());
    for asked in ["src=", "@import", "url(", "<link", "<iframe", "fetch("] {
        assert!(!page.contains(asked), "{asked}");
    }
    // Names of objects are anybody's.
    assert!(page.contains("a&lt;b&gt;&amp;&quot;c"), "{page}");
    assert!(!page.contains("a<b>"));
    for part in [
        "live/broken.yaml:2: ",
        "data-namespace=\"team-a\" data-verdict=\"deny\"",
        "<figcaption>Findings by rule</figcaption>",
        "Until 2027-01-31, for team-llm: a &lt;test&gt; &amp; more",
        "<pre>spec:",
        "policies/RULES.md#gpu-utilization-signal\">gpu-utilization-signal</a>",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
}

/// What a browser makes of a page.
fn dom(path: &Path, args: &[&str]) -> String {
    let browser = ["chromium", "chromium-browser", "google-chrome", "chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .expect("a browser: install chromium");
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(args)
        .arg(format!("file://{}", path.display()))
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The page with a script at its end that writes what it finds into the title.
fn asking(folder: &Path, page: &str, script: &str) -> PathBuf {
    let path = folder.join("asking.html");
    let script =
        format!("<script>document.title = JSON.stringify((() => {{ {script} }})());</script>");
    fs::write(&path, page.replace("</body>", &format!("{script}</body>"))).unwrap();
    path
}

fn title(dom: &str) -> &str {
    let rest = dom.split_once("<title>").unwrap().1;
    rest.split_once("</title>").unwrap().0
}

#[test]
#[ignore = "needs a browser: .ci/full installs one and runs it"]
fn a_browser_filters_it_and_a_phone_shows_it() {
    let folder = manifests();
    let (page, path) = page(folder.path());
    let choose = |id: &str, value: &str| {
        let script = format!(
            "document.getElementById('{id}').value = '{value}'; \
             document.getElementById('filters').dispatchEvent(new Event('input')); \
             return [...document.querySelectorAll('.object')].filter((o) => !o.hidden) \
             .map((o) => o.dataset.namespace).concat([...document.querySelectorAll('article')] \
             .filter((a) => !a.hidden && !a.closest('.object').hidden).length)"
        );
        let dom = dom(&asking(folder.path(), &page, &script), &[]);
        title(&dom).replace("&quot;", "\"")
    };
    assert_eq!(choose("namespace", "team-a"), r#"["team-a",2]"#);
    assert_eq!(choose("rule", "gpu-pool-limits"), r#"["(none)",1]"#);
    assert_eq!(choose("verdict", "allow"), r#"["(none)",3]"#);
    assert_eq!(choose("rule", "").matches("(none)").count(), 2);

    let wide = "return document.documentElement.scrollWidth <= window.innerWidth";
    let narrow = asking(folder.path(), &page, wide);
    assert_eq!(title(&dom(&narrow, &["--window-size=360,740"])), "true");

    // As in a browser without scripts: the page's own policy forbids them.
    let without = folder.path().join("without.html");
    fs::write(
        &without,
        page.replace("script-src 'unsafe-inline'", "script-src 'none'"),
    )
    .unwrap();
    let plain = dom(&without, &[]);
    assert!(
        plain.contains("<form id=\"filters\" hidden"),
        "no filter that does nothing"
    );
    assert_eq!(plain.matches("class=\"object\"").count(), 3);
    let scripted = dom(&path, &[]);
    assert!(!scripted.contains("<form id=\"filters\" hidden"));
    assert!(scripted.contains("3 of 3 objects"));
}
