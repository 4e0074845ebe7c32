//! The chart: what Helm makes of it, and its life in a real cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use gangplank::{
    facts::cluster::Watched,
    rules::kinds,
    source,
};
use promql_parser::{label::MatchOp, parser::{self, Expr}};
use serde_json::{Value, json};

use crate::{
    enforce::{hpa, node_pool},
    harness::{Helm, SOON, eventually, leash::Signal, shared_cluster},
    release::{BAD, GOOD, NAME, NAMESPACE, Release, Writes, chart},
    serve::get,
};

/// `helm template` with these arguments; what it said where it refused.
fn render(args: &[&str]) -> Result<Result<Vec<Value>, String>> {
    let helm = Helm::of(shared_cluster()?)?;
    let path = chart();
    let mut all = vec!["template", NAME, path.to_str().context("a path")?];
    all.extend(["--namespace", NAMESPACE]);
    all.extend(args);
    let answer = helm.run(&all)?;
    if !answer.accepted() {
        return Ok(Err(answer.stderr));
    }
    let mut objects = Vec::new();
    for text in answer.stdout.split("\n---\n") {
        let value: Value = serde_saphyr::from_str(text)?;
        if value.is_object() {
            objects.push(value);
        }
    }
    Ok(Ok(objects))
}

fn rendered(args: &[&str]) -> Result<Vec<Value>> {
    render(args)?.map_err(anyhow::Error::msg)
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().with_context(|| format!("no {kind} {name}"))
}
