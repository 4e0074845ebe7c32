//! The reader of command lines: whatever stands in a container, it neither panics nor takes long, and
//! says the same again. The first line names the engine whose image the container has; the lines
//! after it are `command`, a word a line; after a line `---` follows the file that `--config
//! /etc/llm/c.yaml` and `sh /etc/llm/c.yaml` find.

use std::sync::Arc;

use gangplank::{
    budget::Budget,
    catalog::engines::{Engine, Engines},
    engine::{ConfigMaps, Server, Surroundings, servers},
    facts::Facts,
    finding::FieldPath,
    subject::{
        Door,
        pod_template::{Count, PodTemplate},
    },
};
use serde_json::{Value, json};

pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (words, file) = text.split_once("\n---\n").unwrap_or((text, ""));
    let (engine, words) = words.split_once('\n').unwrap_or((words, ""));
    let words: Vec<&str> = words.split('\n').collect();
    let map = Arc::new(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "llm"},
        "data": {"c.yaml": file},
    }));
    let facts = Facts::from_documents([&map]);
    let budget = Budget::default();
    let around = Surroundings {
        engines: Engines::builtin(),
        config_maps: ConfigMaps {
            facts: &facts,
            namespace: Some("llm"),
        },
        injected: Vec::new(),
        declared: false,
        budget: &budget,
    };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "llm"},
        "spec": {"template": {"spec": {
            "containers": [{
                "name": "server", "image": image(engine), "command": words,
                "env": [{"name": "TP", "value": file}, {"name": "A", "value": "$(TP)$(TP)"}],
                "resources": {"limits": {"nvidia.com/gpu": 8}},
                "volumeMounts": [{"name": "c", "mountPath": "/etc/llm"}],
            }],
            "volumes": [{"name": "c", "configMap": {"name": "c"}}],
        }}},
    });
    let template = PodTemplate::new(
        &deployment["spec"]["template"],
        FieldPath::of(&["spec", "template"]),
    );
    let said = |server: Server<'_>| (server.parallelism, server.processes);
    let read = || -> Vec<_> { servers(&template, &around).into_iter().map(said).collect() };
    let found = read();
    for (parallelism, _) in &found {
        // A number that is said is one that can be meant.
        assert_ne!(parallelism.tensor.count, Count::Known(0));
        let _ = parallelism.describe();
    }
    assert_eq!(found, read());
    let subject = super::created(deployment.clone(), Door::Validate).expect("a manifest");
    super::examine(&facts, &subject);
}

/// The image of the engine of that name; where there is none, of some engine.
fn image(name: &str) -> Value {
    let engines = &Engines::builtin().engines;
    let chosen = engines.iter().find(|engine| engine.name == name);
    let some = || engines.get(name.len() % engines.len());
    let image = |engine: &Engine| engine.images.first().map(|image| image.replace('*', "x"));
    let image = chosen.or_else(some).and_then(image);
    json!(image.as_deref().unwrap_or("app"))
}
