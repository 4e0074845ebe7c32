//! The reader of command lines: whatever stands in a container, it neither panics nor takes long, and
//! says the same again. A text with a line `---` is split there: before it `command`, a word a line,
//! after it the file that `--config /etc/llm/c.yaml` and `sh /etc/llm/c.yaml` find.

#![no_main]

use std::sync::Arc;

use gangplank::{
    catalog::engines::Engines,
    engine::{ConfigMaps, Server, Surroundings, servers},
    facts::Facts,
    finding::FieldPath,
    subject::pod_template::{Count, PodTemplate},
};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (words, file) = text.split_once("\n---\n").unwrap_or((text, ""));
    let words: Vec<&str> = words.split('\n').collect();
    let map = Arc::new(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"c.yaml": file},
    }));
    let facts = Facts::from_documents([&map]);
    let around = Surroundings {
        engines: Engines::builtin(),
        config_maps: ConfigMaps {
            facts: &facts,
            namespace: None,
        },
        injected: Vec::new(),
        declared: false,
    };
    let template = json!({"spec": {
        "containers": [{
            "image": "vllm/vllm-openai", "command": words,
            "env": [{"name": "TP", "value": file}, {"name": "A", "value": "$(TP)$(TP)"}],
            "resources": {"limits": {"nvidia.com/gpu": 8}},
            "volumeMounts": [{"name": "c", "mountPath": "/etc/llm"}],
        }],
        "volumes": [{"name": "c", "configMap": {"name": "c"}}],
    }});
    let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
    let said = |server: Server<'_>| (server.parallelism, server.processes);
    let read = || -> Vec<_> { servers(&template, &around).into_iter().map(said).collect() };
    let found = read();
    for (parallelism, _) in &found {
        // A number that is said is one that can be meant.
        assert_ne!(parallelism.tensor.count, Count::Known(0));
        let _ = parallelism.describe();
    }
    assert_eq!(found, read());
});
