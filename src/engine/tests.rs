#![allow(
    clippy::needless_pass_by_value,
    clippy::redundant_clone,
    clippy::type_complexity,
    reason = "tables read best with their values in place"
)]

use serde_json::{Value, json};

use super::*;

fn around<'a>() -> Surroundings<'a> {
    static NOTHING: std::sync::LazyLock<Facts> = std::sync::LazyLock::new(Facts::unknown);
    Surroundings {
        engines: Engines::builtin(),
        config_maps: ConfigMaps {
            facts: &NOTHING,
            namespace: None,
        },
        injected: Vec::new(),
        declared: false,
        // No reading of one test is to be another's cost.
        budget: Box::leak(Box::default()),
    }
}

/// The only server of a pod.
fn server<'a>(template: &PodTemplate<'a>, around: &Surroundings<'a>) -> Option<Server<'a>> {
    let mut all = servers(template, around);
    assert!(all.len() < 2);
    all.pop()
}

fn with_gpus(mut container: Value, gpus: u64) -> Value {
    container["resources"] = json!({"limits": {"nvidia.com/gpu": gpus}});
    json!({"spec": {"containers": [container]}})
}

/// Title, description, ranks, nodes and evidence of the one server in a pod of 8 GPUs.
fn look(container: Value) -> Option<(String, String, Count, Option<Count>, Option<String>)> {
    let template = with_gpus(container, 8);
    let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
    let server = server(&template, &around())?;
    let p = &server.parallelism;
    Some((
        server.title().to_owned(),
        p.describe(),
        p.world,
        p.nodes.as_ref().map(|nodes| nodes.count),
        p.multi_node.as_ref().map(|evidence| evidence.text.clone()),
    ))
}

fn vllm(args: &[&str]) -> (String, Count) {
    let found = look(json!({"image": "vllm/vllm-openai:v0.11.0", "args": args})).unwrap();
    (found.1, found.2)
}

const fn known(number: u64) -> Count {
    Count::Known(number)
}

#[test]
fn vllm_flags_are_read_as_its_parser_does() {
    for (args, world) in [
        (vec!["--tensor-parallel-size", "8"], known(8)),
        (vec!["--tensor-parallel-size=8"], known(8)),
        (vec!["-tp", "8"], known(8)),
        (vec!["-tp=8"], known(8)),
        (vec!["-tp8"], known(1)),
        (vec!["--tensor_parallel_size", "8"], known(8)),
        (vec!["--tensor_parallel_size=8"], known(8)),
        (vec!["--tensor-parallel", "8"], known(8)),
        (vec!["--tensor", "8"], known(8)),
        (vec!["--data-parallel", "8"], known(1)),
        (vec!["-tp", "8", "-tp", "1"], known(1)),
        (vec!["-tp", "2", "-pp", "2"], known(4)),
        (vec!["-tp", "4", "-dcp", "2"], known(4)),
        (vec!["-tp", "2", "-pp", "2", "-pcp", "2"], known(8)),
        (vec!["-tp", "2", "-dp", "4"], known(8)),
        (
            vec!["-tp", "2", "-dp", "4", "--data-parallel-rank", "1"],
            known(2),
        ),
        (
            vec![
                "--speculative-config",
                "{\"draft_tensor_parallel_size\": 8}",
            ],
            known(1),
        ),
        (vec!["--mm-encoder-tp-mode", "data"], known(1)),
        (vec!["--tensor-parallel-size", "eight"], Count::Unknown),
        (vec!["--tensor-parallel-size", "0"], Count::Unknown),
        (
            vec!["--tensor-parallel-size", "99999999999999999999"],
            Count::Unknown,
        ),
        (vec!["--tensor-parallel-size"], Count::Unknown),
        (vec!["--config", "/etc/vllm.yaml"], Count::Unknown),
        (vec!["--tensor-parallel-size", "$(TP)"], Count::Unknown),
        (vec![], known(1)),
    ] {
        assert_eq!(vllm(&args).1, world, "{args:?}");
    }
    assert_eq!(vllm(&["-tp", "8", "-pp", "2"]).0, "TP 8 × PP 2");
}

#[test]
fn engines_are_read_by_their_own_flags_and_variables() {
    let sglang = |args: &[&str]| {
        let mut all = vec!["python3", "-m", "sglang.launch_server"];
        all.extend(args);
        look(json!({"image": "lmsysorg/sglang:v0.5", "command": all})).unwrap()
    };
    assert_eq!(sglang(&["--tp", "16", "--nnodes", "2"]).2, known(16));
    assert_eq!(sglang(&["--tp", "16", "--nnodes", "2"]).3, Some(known(2)));
    assert_eq!(sglang(&["--tp-size", "8", "--dp-size", "2"]).2, known(16));
    assert_eq!(
        sglang(&["--tp", "8", "--dp", "8", "--enable-dp-attention"]).2,
        known(8)
    );
    assert_eq!(sglang(&["--tp_size", "8"]).2, known(1));
    assert_eq!(sglang(&["--pp", "2"]).2, known(1));

    let trt = |args: &[&str]| {
        look(json!({"image": "x", "command": ["trtllm-serve"], "args": args}))
            .unwrap()
            .2
    };
    assert_eq!(trt(&["m", "--tp_size=8", "--pp_size", "2"]), known(16));
    assert_eq!(
        trt(&["m", "--tp_size=8", "--extra_llm_api_options", "x.yaml"]),
        Count::Unknown
    );

    let tgi = |args: &[&str], env: Value| {
        look(json!({
            "image": "ghcr.io/huggingface/text-generation-inference:3", "args": args, "env": env
        }))
        .unwrap()
        .2
    };
    assert_eq!(tgi(&["--num-shard=4"], json!([])), known(4));
    assert_eq!(
        tgi(&[], json!([{"name": "NUM_SHARD", "value": "2"}])),
        known(2)
    );
    assert_eq!(tgi(&[], json!([])), known(8), "silence takes every GPU");
    assert_eq!(tgi(&["--sharded", "false"], json!([])), known(1));
    let hidden = json!([{"name": "CUDA_VISIBLE_DEVICES", "value": "0,1"}]);
    assert_eq!(tgi(&[], hidden), Count::Unknown);

    let nim = |env: Value| {
        look(json!({"image": "nvcr.io/nim/meta/llama-3.1-70b-instruct:1", "env": env}))
            .unwrap()
            .2
    };
    assert_eq!(
        nim(json!([{"name": "NIM_TENSOR_PARALLEL_SIZE", "value": "4"}])),
        known(4)
    );
    let both = json!([
        {"name": "NIM_TENSOR_PARALLEL_SIZE", "value": "4"},
        {"name": "NIM_PASSTHROUGH_ARGS", "value": "--tensor-parallel-size 8"}
    ]);
    assert_eq!(nim(both), known(8));
    assert_eq!(
        nim(json!([{"name": "NIM_MODEL_PROFILE", "value": "vllm-fp16-tp2"}])),
        known(2)
    );
    assert_eq!(nim(json!([])), Count::Unknown);

    let lmdeploy = look(json!({
        "image": "openmmlab/lmdeploy", "command": ["lmdeploy", "serve", "api_server", "m", "--tp", "4"]
    }));
    assert_eq!(lmdeploy.unwrap().2, known(4));
    let djl = look(json!({
        "image": "deepjavalibrary/djl-serving:0.30-lmi",
        "env": [{"name": "OPTION_TENSOR_PARALLEL_DEGREE", "value": "max"}]
    }));
    assert_eq!(djl.unwrap().2, known(8));
    let triton = look(json!({
        "image": "nvcr.io/nvidia/tritonserver:24.06-py3",
        "command": ["python3", "/opt/launch_triton_server.py", "--world_size", "4"]
    }));
    assert_eq!(triton.unwrap().2, known(4));
    let mpi = look(json!({
        "image": "nvcr.io/nvidia/tritonserver:24.06-py3",
        "command": ["mpirun", "-n", "8", "--allow-run-as-root", "tritonserver", "--model-repository=/m"]
    }));
    assert_eq!(mpi.unwrap().2, known(8));
}

#[test]
fn scripts_and_variables_are_followed() {
    let script = |command: &[&str], env: Value| {
        look(json!({"image": "vllm/vllm-openai:v1", "command": command, "env": env}))
            .unwrap()
            .2
    };
    let tp = json!([{"name": "TP", "value": "8"}]);
    let none = json!([]);
    assert_eq!(
        script(
            &["bash", "-lc", "exec vllm serve m \\\n  -tp 8"],
            none.clone()
        ),
        known(8)
    );
    assert_eq!(
        script(&["sh", "-c", "sleep 1 && vllm serve m -tp $TP"], tp.clone()),
        known(8)
    );
    assert_eq!(
        script(&["sh", "-c", "vllm serve m -tp ${N:-4}"], none.clone()),
        known(4)
    );
    assert_eq!(
        script(&["sh", "-c", "vllm serve m -tp ${TP:-4}"], tp.clone()),
        known(8)
    );
    assert_eq!(
        script(&["sh", "-c", "vllm serve m -tp $(TP)"], tp.clone()),
        known(8)
    );
    assert_eq!(
        script(
            &["sh", "-c", "vllm serve m -tp $(nvidia-smi -L | wc -l)"],
            none.clone()
        ),
        Count::Unknown
    );
    assert_eq!(
        script(
            &[
                "sh",
                "-c",
                "exec python3 -m vllm.entrypoints.openai.api_server \"$@\"",
                "x",
                "-tp",
                "4"
            ],
            none.clone()
        ),
        known(4)
    );
    assert_eq!(
        script(
            &[
                "/bin/bash",
                "-c",
                "cat <<EOF > c\n-tp 2\nEOF\nnumactl -N 0 vllm serve m -tp 4"
            ],
            none.clone()
        ),
        known(4)
    );
    assert_eq!(
        script(
            &[
                "sh",
                "-c",
                "if x; then vllm serve m -tp 8; else vllm serve m -tp 4; fi"
            ],
            none
        ),
        Count::Unknown
    );
}

#[test]
fn launchers_in_front_of_an_engine_are_seen_through() {
    for command in [
        vec!["uv", "run", "vllm", "serve", "m", "-tp", "4"],
        vec!["env", "A=b", "vllm", "serve", "m", "-tp", "4"],
        vec!["tini", "--", "vllm", "serve", "m", "-tp", "4"],
        vec![
            "/usr/bin/python3.12",
            "-u",
            "-m",
            "vllm.entrypoints.openai.api_server",
            "-tp=4",
        ],
        vec![
            "sh",
            "-c",
            "nohup timeout 9 vllm serve m -tp 4 2>&1 | tee log",
        ],
    ] {
        let found = look(json!({"image": "example/base", "command": command}));
        assert_eq!(found.unwrap().2, known(4), "{command:?}");
    }
}

#[test]
fn config_maps_are_read_and_secrets_are_unknown() {
    let map = std::sync::Arc::new(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "serving", "namespace": "n"},
        "data": {"tp": "8", "NUM": "2"}
    }));
    let facts = Facts::from_documents([&map]);
    let world = |env: Value, env_from: Value, arg: &str| {
        let template = with_gpus(
            json!({"image": "vllm/vllm-openai", "args": ["-tp", arg], "env": env, "envFrom": env_from}),
            8,
        );
        let around = Surroundings {
            config_maps: ConfigMaps {
                facts: &facts,
                namespace: Some("n"),
            },
            ..around()
        };
        let template = PodTemplate::new(&template, FieldPath::new());
        server(&template, &around).unwrap().parallelism.world
    };
    let key = |name: &str, kind: &str| json!([{"name": "TP", "valueFrom": {kind: {"name": name, "key": "tp"}}}]);
    assert_eq!(
        world(key("serving", "configMapKeyRef"), json!([]), "$(TP)"),
        known(8)
    );
    assert_eq!(
        world(key("other", "configMapKeyRef"), json!([]), "$(TP)"),
        Count::Unknown
    );
    assert_eq!(
        world(key("serving", "secretKeyRef"), json!([]), "$(TP)"),
        Count::Unknown
    );
    let from = json!([{"configMapRef": {"name": "serving"}}]);
    assert_eq!(world(json!([]), from, "$(NUM)"), known(2));
}

/// The ranks of a vLLM-like container in a pod of eight GPUs, in a world of these documents.
fn in_a_world(container: Value, volumes: Value, documents: &[Value]) -> (Count, Option<FieldPath>) {
    let documents: Vec<std::sync::Arc<Value>> = documents
        .iter()
        .map(|document| std::sync::Arc::new(document.clone()))
        .collect();
    let facts = Facts::from_documents(&documents);
    let mut template = with_gpus(container, 8);
    template["spec"]["volumes"] = volumes;
    let around = Surroundings {
        config_maps: ConfigMaps {
            facts: &facts,
            namespace: Some("n"),
        },
        ..around()
    };
    let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
    let found = server(&template, &around).unwrap();
    (
        found.parallelism.world,
        found.parallelism.tensor.path.clone(),
    )
}

fn config_map(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"},
        "data": data,
    })
}

#[test]
fn settings_in_a_mounted_file_are_the_flags_that_they_stand_for() {
    let vllm = |args: &[&str]| json!({"image": "vllm/vllm-openai", "args": args});
    let sglang = |args: &[&str]| json!({"image": "lmsysorg/sglang", "args": args});
    let trt = |args: &[&str]| {
        let mut all = vec!["trtllm-serve", "m"];
        all.extend(args);
        json!({"image": "x", "command": all})
    };
    let dynamo = |args: &[&str]| {
        let mut all = vec!["python3", "-m", "dynamo.trtllm"];
        all.extend(args);
        json!({"image": "x", "command": all})
    };
    for (container, text, world) in [
        (
            vllm(&["--config", "/etc/llm/c.yaml"]),
            "tensor-parallel-size: 4\npipeline_parallel_size: 2\n",
            known(8),
        ),
        (
            vllm(&["--config=/etc/llm/c.yaml"]),
            "tensor-parallel-size: \"4\"\n",
            known(4),
        ),
        // The command line wins, wherever it names the file.
        (
            vllm(&["-tp=2", "--config", "/etc/llm/c.yaml"]),
            "tensor-parallel-size: 4\n",
            known(2),
        ),
        (
            vllm(&["--config", "/etc/llm/c.yaml"]),
            "model: m\nenforce-eager: true\n",
            known(1),
        ),
        (
            vllm(&["--config", "/etc/llm/c.yaml"]),
            "data-parallel-size: 4\nenable-expert-parallel: true\n",
            known(4),
        ),
        (vllm(&["--config", "/etc/llm/c.yaml"]), "", known(1)),
        (
            vllm(&["--config", "/etc/llm/c.yaml"]),
            "[1, 2]",
            Count::Unknown,
        ),
        (
            vllm(&["--config", "/etc/llm/c.yaml"]),
            "tensor-parallel-size: [",
            Count::Unknown,
        ),
        (
            vllm(&["--config", "/etc/llm/other.yaml"]),
            "tensor-parallel-size: 4\n",
            Count::Unknown,
        ),
        (
            vllm(&["--config", "/etc/llm/../llm/c.yaml"]),
            "tensor-parallel-size: 4\n",
            Count::Unknown,
        ),
        (
            sglang(&["--config", "/etc/llm/c.yaml"]),
            "tp-size: 8\n",
            known(8),
        ),
        (
            sglang(&["--config", "/etc/llm/c.yaml", "--tp", "2"]),
            "tensor_parallel_size: 8\n",
            known(2),
        ),
        // TensorRT-LLM's file wins over its command line.
        (
            trt(&["--tp_size=2", "--extra_llm_api_options", "/etc/llm/c.yaml"]),
            "tensor_parallel_size: 8\n",
            known(8),
        ),
        (
            trt(&["--tp_size=2", "--config", "/etc/llm/c.yaml"]),
            "kv_cache_config: {free_gpu_memory_fraction: 0.9}\n",
            known(2),
        ),
        (
            dynamo(&[
                "--tensor-parallel-size=2",
                "--extra-engine-args=/etc/llm/c.yaml",
            ]),
            "tensor_parallel_size: 4\n",
            known(4),
        ),
    ] {
        let mut container = container;
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/etc/llm/"}]);
        let volumes = json!([{"name": "v", "configMap": {"name": "settings"}}]);
        let map = config_map("settings", json!({"c.yaml": text}));
        let found = in_a_world(container.clone(), volumes, &[map]).0;
        assert_eq!(found, world, "{container}: {text}");
    }
}

/// A server whose `/scripts` holds the ConfigMap `scripts`.
fn scripted(container: Value, data: Option<Value>) -> (Count, Option<FieldPath>) {
    let mut container = container;
    container["image"] = json!("vllm/vllm-openai");
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/scripts"}]);
    let volumes = json!([{"name": "v", "configMap": {"name": "scripts", "defaultMode": 493}}]);
    let maps: Vec<Value> = data
        .map(|data| config_map("scripts", data))
        .into_iter()
        .collect();
    in_a_world(container, volumes, &maps)
}

#[test]
fn a_script_in_a_mounted_config_map_is_read_as_one_of_sh() {
    let command = |command: &[&str]| json!({"command": command});
    let run = "/scripts/run.sh";
    for (container, text, world) in [
        (command(&["bash", run]), "vllm serve m -tp 8", known(8)),
        (
            command(&["bash", "-e", "-o", "pipefail", run]),
            "vllm serve m -tp 8",
            known(8),
        ),
        (
            command(&["sh", "--", run]),
            "exec vllm serve m -tp 8",
            known(8),
        ),
        (
            command(&[run]),
            "#!/bin/bash\nset -eu\nvllm serve m \\\n  -tp 8\n",
            known(8),
        ),
        (
            command(&["tini", "--", run]),
            "#!/usr/bin/env bash\nvllm serve m -tp=4",
            known(4),
        ),
        (
            json!({"args": ["bash", run]}),
            "vllm serve m -tp 8",
            known(8),
        ),
        (json!({"args": [run]}), "vllm serve m -tp 8", known(8)),
        (
            json!({"workingDir": "/scripts", "command": ["./run.sh"]}),
            "vllm serve m -tp 8",
            known(8),
        ),
        (
            command(&["sh", "-c", "sleep 5; exec /scripts/run.sh"]),
            "vllm serve m -tp 8",
            known(8),
        ),
        (
            json!({"command": ["sh", run], "env": [{"name": "TP", "value": "8"}]}),
            "vllm serve m -tp $TP",
            known(8),
        ),
        (
            json!({"command": ["sh", run], "args": ["-tp", "8"]}),
            "exec vllm serve m \"$@\"",
            known(8),
        ),
        // What nobody can see is unknown, and no single rank.
        (
            command(&["sh", run]),
            "vllm serve m -tp $(nvidia-smi -L | wc -l)",
            Count::Unknown,
        ),
        (
            command(&["sh", "-c", "export TP=8; /scripts/run.sh"]),
            "vllm serve m -tp $TP",
            Count::Unknown,
        ),
        (
            command(&["sh", run]),
            "python3 /app/serve.py",
            Count::Unknown,
        ),
        (
            command(&["bash", "/scripts/other.sh", "-tp=16"]),
            "vllm serve m -tp 8",
            Count::Unknown,
        ),
        (
            command(&[run, "--tensor-parallel-size=16"]),
            "#!/usr/bin/python3\nmain()",
            Count::Unknown,
        ),
        // It runs itself.
        (
            command(&[run]),
            "/scripts/run.sh; /scripts/run.sh; . /scripts/run.sh",
            Count::Unknown,
        ),
        (
            command(&[run]),
            "/scripts/run.sh & vllm serve m -tp 8",
            known(8),
        ),
    ] {
        let found = scripted(container.clone(), Some(json!({"run.sh": text}))).0;
        assert_eq!(found, world, "{container}: {text}");
    }
    // Without the ConfigMap nobody knows, whatever flags the script is given.
    for container in [
        command(&["bash", run]),
        command(&[run, "--tensor-parallel-size=16"]),
        json!({"args": ["bash", run, "-tp=16"]}),
        command(&["sh", "-c", "exec /scripts/run.sh -tp 16"]),
    ] {
        let (world, path) = scripted(container.clone(), None);
        assert_eq!(world, Count::Unknown, "{container}");
        assert!(path.is_some(), "{container}");
    }
    let path = scripted(command(&["bash", run]), None).1.unwrap();
    let expected = FieldPath::of(&["spec", "template", "spec"])
        .key("containers")
        .index(0);
    assert_eq!(path, expected.key("command").index(1));
    // An argument of the image's entry point is the model that it serves.
    let model = json!({"args": ["/scripts/llama", "--tensor-parallel-size=8"]});
    assert_eq!(scripted(model, None).0, known(8));
}

#[test]
fn a_file_is_found_however_it_is_mounted() {
    let server = |mounts: Value| {
        json!({
            "image": "vllm/vllm-openai", "args": ["--config", "/etc/llm/c.yaml"],
            "volumeMounts": mounts,
        })
    };
    let map = config_map(
        "settings",
        json!({"c.yaml": "tensor-parallel-size: 8", "k": "tensor-parallel-size: 4"}),
    );
    let plain = json!({"name": "v", "configMap": {"name": "settings"}});
    let renamed = json!({"name": "v", "configMap": {
        "name": "settings", "items": [{"key": "k", "path": "c.yaml"}],
    }});
    let projected = json!({"name": "v", "projected": {"sources": [
        {"secret": {"name": "other"}}, {"configMap": {"name": "settings"}},
    ]}});
    let whole = json!([{"name": "v", "mountPath": "/etc/llm"}]);
    for (mounts, volume, world) in [
        (whole.clone(), plain.clone(), known(8)),
        (whole.clone(), renamed, known(4)),
        (whole.clone(), projected, known(8)),
        (
            json!([{"name": "v", "mountPath": "/etc/llm/c.yaml", "subPath": "k"}]),
            plain.clone(),
            known(4),
        ),
        (
            json!([{"name": "v", "mountPath": "/etc/llm/c.yaml", "subPathExpr": "$(K)"}]),
            plain.clone(),
            Count::Unknown,
        ),
        // Another volume hides it.
        (
            json!([
                {"name": "v", "mountPath": "/etc"}, {"name": "other", "mountPath": "/etc/llm"},
            ]),
            plain.clone(),
            Count::Unknown,
        ),
        (
            json!([{"name": "v", "mountPath": "/etc/llm2"}]),
            plain,
            Count::Unknown,
        ),
        (
            whole.clone(),
            json!({"name": "v", "secret": {"secretName": "settings"}}),
            Count::Unknown,
        ),
        (
            whole,
            json!({"name": "v", "configMap": {"name": "unseen"}}),
            Count::Unknown,
        ),
    ] {
        let (found, path) = in_a_world(
            server(mounts.clone()),
            json!([volume]),
            std::slice::from_ref(&map),
        );
        assert_eq!(found, world, "{mounts} {volume}");
        // What is said of it points at the flag.
        assert_eq!(
            path.unwrap().to_string(),
            "spec.template.spec.containers[0].args[0]"
        );
    }
    // A relative path counts from the container's own folder.
    let mut relative = server(json!([{"name": "v", "mountPath": "/etc/llm"}]));
    relative["args"] = json!(["--config", "llm/c.yaml"]);
    let volumes = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    let of = |container: &Value| {
        in_a_world(
            container.clone(),
            volumes.clone(),
            std::slice::from_ref(&map),
        )
        .0
    };
    assert_eq!(of(&relative), Count::Unknown);
    relative["workingDir"] = json!("/etc");
    assert_eq!(of(&relative), known(8));
}

#[test]
fn every_engine_is_read_by_its_documented_flags_and_variables() {
    let image = |image: &str, args: &[&str]| json!({"image": image, "args": args});
    let command = |words: &[&str]| json!({"image": "example/base", "command": words});
    let with_env = |mut container: Value, env: &[(&str, &str)]| {
        container["env"] = env
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        container
    };
    let nodes = |number| Some(known(number));
    let table: Vec<(Value, &str, Count, Option<Count>)> = vec![
        // vLLM, and what runs it.
        (
            command(&[
                "vllm", "serve", "m", "-tp", "8", "-pp", "2", "-n", "2", "-r", "0",
            ]),
            "vLLM",
            known(16),
            nodes(2),
        ),
        (
            command(&[
                "python3",
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--tensor-parallel-size",
                "4",
            ]),
            "vLLM",
            known(4),
            None,
        ),
        (
            command(&["python3", "-m", "dynamo.vllm", "--model", "m", "-tp", "4"]),
            "vLLM",
            known(4),
            None,
        ),
        (
            image(
                "kserve/huggingfaceserver-vllm",
                &["--tensor-parallel-size=2"],
            ),
            "vLLM",
            known(2),
            None,
        ),
        (
            command(&["vllm", "serve", "m", "-tp", "2", "-dp", "4", "-ep"]),
            "vLLM",
            known(8),
            None,
        ),
        (
            command(&[
                "vllm",
                "serve",
                "m",
                "-tp=2",
                "-dp=4",
                "-dpl=2",
                "--data-parallel-hybrid-lb",
            ]),
            "vLLM",
            known(4),
            None,
        ),
        (
            command(&["vllm", "serve", "m", "-tp=2", "-dp=4", "-dpn=1", "-ep"]),
            "vLLM",
            known(8),
            None,
        ),
        (
            command(&["vllm", "serve", "m", "-tp", "2", "-dcp", "2", "-pcp", "2"]),
            "vLLM",
            known(4),
            None,
        ),
        // SGLang.
        (
            command(&[
                "python3",
                "-m",
                "sglang.launch_server",
                "--tp-size",
                "16",
                "--nnodes",
                "2",
                "--node-rank",
                "0",
                "--dist-init-addr",
                "a:1",
            ]),
            "SGLang",
            known(16),
            nodes(2),
        ),
        (
            command(&[
                "sglang",
                "serve",
                "--tensor-parallel-size=4",
                "--pipeline-parallel-size=2",
            ]),
            "SGLang",
            known(8),
            None,
        ),
        (
            command(&["python3", "-m", "dynamo.sglang", "--tp", "4"]),
            "SGLang",
            known(4),
            None,
        ),
        (
            command(&[
                "python3",
                "-m",
                "sglang.launch_server",
                "--tp=8",
                "--dp=8",
                "--enable-dp-attention",
                "--ep=8",
            ]),
            "SGLang",
            known(8),
            None,
        ),
        // TensorRT-LLM.
        (
            command(&[
                "trtllm-serve",
                "m",
                "--tensor_parallel_size",
                "4",
                "--pipeline_parallel_size=2",
            ]),
            "TensorRT-LLM",
            known(8),
            None,
        ),
        (
            command(&[
                "trtllm-serve",
                "serve",
                "m",
                "--tp_size=2",
                "--cp_size=2",
                "--ep_size=2",
            ]),
            "TensorRT-LLM",
            known(4),
            None,
        ),
        (
            command(&[
                "trtllm-llmapi-launch",
                "trtllm-serve",
                "m",
                "--tp_size",
                "16",
            ]),
            "TensorRT-LLM",
            known(16),
            None,
        ),
        (
            command(&["trtllm-serve", "m", "--tensor-parallel", "4"]),
            "TensorRT-LLM",
            known(1),
            None,
        ),
        (
            command(&["python3", "-m", "dynamo.trtllm", "--tensor-parallel-size=4"]),
            "TensorRT-LLM under Dynamo",
            known(4),
            None,
        ),
        (
            with_env(
                command(&["python3", "-m", "dynamo.trtllm"]),
                &[("DYN_TRTLLM_TENSOR_PARALLEL_SIZE", "4")],
            ),
            "TensorRT-LLM under Dynamo",
            known(4),
            None,
        ),
        (
            with_env(
                command(&["python3", "-m", "dynamo.trtllm", "--tensor-parallel-size=2"]),
                &[("DYN_TRTLLM_TENSOR_PARALLEL_SIZE", "4")],
            ),
            "TensorRT-LLM under Dynamo",
            known(2),
            None,
        ),
        // Text Generation Inference: silence takes every GPU.
        (
            command(&["text-generation-launcher", "--num-shard", "4"]),
            "Text Generation Inference",
            known(4),
            None,
        ),
        (
            command(&["text-generation-launcher", "--sharded", "true"]),
            "Text Generation Inference",
            known(8),
            None,
        ),
        (
            with_env(
                image("ghcr.io/huggingface/text-generation-inference:3", &[]),
                &[("SHARDED", "false")],
            ),
            "Text Generation Inference",
            known(1),
            None,
        ),
        (
            with_env(
                image(
                    "ghcr.io/huggingface/text-generation-inference:3",
                    &["--num-shard=2"],
                ),
                &[("NUM_SHARD", "8")],
            ),
            "Text Generation Inference",
            known(2),
            None,
        ),
        // LMDeploy.
        (
            command(&[
                "lmdeploy",
                "serve",
                "api_server",
                "m",
                "--tp=8",
                "--nnodes",
                "2",
                "--node-rank",
                "1",
            ]),
            "LMDeploy",
            known(8),
            nodes(2),
        ),
        (
            command(&[
                "lmdeploy",
                "serve",
                "api_server",
                "m",
                "--tp",
                "4",
                "--dp",
                "2",
            ]),
            "LMDeploy",
            Count::Unknown,
            None,
        ),
        // NIM: the later source is stronger.
        (
            with_env(
                image("nvcr.io/nim/meta/llama-3.1-70b-instruct:1", &[]),
                &[
                    ("NIM_TENSOR_PARALLEL_SIZE", "4"),
                    ("NIM_PIPELINE_PARALLEL_SIZE", "2"),
                ],
            ),
            "NVIDIA NIM",
            known(8),
            None,
        ),
        (
            with_env(
                image("nvcr.io/nim/meta/llama-3.1-70b-instruct:1", &[]),
                &[("NIM_PASSTHROUGH_ARGS", "--tensor-parallel-size 8")],
            ),
            "NVIDIA NIM",
            known(8),
            None,
        ),
        (
            with_env(
                command(&["nim-serve", "--tensor-parallel-size", "2"]),
                &[("NIM_PASSTHROUGH_ARGS", "--tensor-parallel-size 8")],
            ),
            "NVIDIA NIM",
            known(2),
            None,
        ),
        (
            with_env(
                image("nvcr.io/nim/meta/llama-3.1-70b-instruct:1", &[]),
                &[("NIM_MODEL_PROFILE", "vllm-bf16-tp4-pp2")],
            ),
            "NVIDIA NIM",
            known(8),
            None,
        ),
        (
            with_env(
                image("nvcr.io/nim/meta/llama-3.1-70b-instruct:1", &[]),
                &[("NIM_MODEL_PROFILE", "9f7c1a")],
            ),
            "NVIDIA NIM",
            Count::Unknown,
            None,
        ),
        // Triton: in the model repository, unless the launcher says so.
        (
            command(&["python3", "launch_triton_server.py", "--world_size=4"]),
            "Triton Inference Server",
            known(4),
            None,
        ),
        (
            command(&[
                "mpirun",
                "-np",
                "2",
                "tritonserver",
                "--model-repository=/m",
            ]),
            "Triton Inference Server",
            known(2),
            None,
        ),
        (
            command(&["tritonserver", "--model-repository=/m"]),
            "Triton Inference Server",
            Count::Unknown,
            None,
        ),
        // DeepSpeed-MII: replicas have ranks of their own.
        (
            command(&[
                "python",
                "-m",
                "mii.entrypoints.openai_api_server",
                "--tensor-parallel",
                "4",
            ]),
            "DeepSpeed-MII",
            known(4),
            None,
        ),
        (
            command(&[
                "python",
                "-m",
                "mii.entrypoints.api_server",
                "--tensor-parallel=2",
                "--replica-num=2",
            ]),
            "DeepSpeed-MII",
            known(4),
            None,
        ),
        // DJL.
        (
            with_env(
                image("deepjavalibrary/djl-serving:0.33-lmi", &[]),
                &[("OPTION_TENSOR_PARALLEL_DEGREE", "4")],
            ),
            "DJL Serving (LMI)",
            known(4),
            None,
        ),
        (
            with_env(
                image("deepjavalibrary/djl-serving:0.33-lmi", &[]),
                &[("OPTION_TENSOR_PARALLEL_DEGREE", "max")],
            ),
            "DJL Serving (LMI)",
            known(8),
            None,
        ),
        (
            with_env(
                image("deepjavalibrary/djl-serving:0.33-lmi", &[]),
                &[("SM_VLLM_TENSOR_PARALLEL_SIZE", "2")],
            ),
            "DJL Serving (LMI)",
            known(2),
            None,
        ),
        (
            image("deepjavalibrary/djl-serving:0.33-lmi", &[]),
            "DJL Serving (LMI)",
            Count::Unknown,
            None,
        ),
        // llama.cpp has no ranks that meet.
        (
            command(&["llama-server", "-m", "m.gguf", "--split-mode", "row"]),
            "llama.cpp",
            Count::Unknown,
            None,
        ),
        (
            command(&["serve", "run", "app:main"]),
            "Ray Serve LLM",
            Count::Unknown,
            None,
        ),
    ];
    for (container, title, world, nodes) in table {
        let found = look(container.clone()).unwrap_or_else(|| panic!("no server: {container}"));
        assert_eq!(
            (found.0.as_str(), found.2, found.3),
            (title, world, nodes),
            "{container}"
        );
    }
    // Signs of other pods where the engine knows no number of nodes.
    let rpc = look(command(&["llama-server", "-m", "m", "--rpc", "a:1,b:1"])).unwrap();
    assert_eq!(rpc.4.as_deref(), Some("--rpc"));
}

#[test]
fn launchers_serve_only_where_somebody_says_so() {
    for (words, env, world) in [
        (
            &["torchrun", "--nproc-per-node=8", "--nnodes=2", "serve.py"][..],
            json!([]),
            known(16),
        ),
        (
            &["torchrun", "--nproc_per_node", "4", "serve.py"],
            json!([]),
            known(4),
        ),
        (
            &["torchrun", "--nproc-per-node=8", "--nnodes=1:4", "serve.py"],
            json!([]),
            Count::Unknown,
        ),
        (
            &["torchrun", "--nproc-per-node=gpu", "serve.py"],
            json!([]),
            Count::Unknown,
        ),
        (
            &["python", "-m", "torch.distributed.run", "serve.py"],
            json!([{"name": "PET_NPROC_PER_NODE", "value": "4"}, {"name": "PET_NNODES", "value": "2"}]),
            known(8),
        ),
        (
            &["deepspeed", "--num_gpus", "4", "serve.py"],
            json!([]),
            known(4),
        ),
    ] {
        let template = with_gpus(
            json!({"image": "example/base", "command": words, "env": env}),
            8,
        );
        let template = PodTemplate::new(&template, FieldPath::new());
        assert!(server(&template, &around()).is_none(), "{words:?} trains");
        let declared = Surroundings {
            declared: true,
            ..around()
        };
        let found = server(&template, &declared).unwrap();
        assert_eq!(found.parallelism.world, world, "{words:?}");
    }
}

#[test]
fn ray_serves_ranks_are_read_off_its_configuration() {
    let ranks = |config: &str| {
        let object = json!({"spec": {"serveConfigV2": config}});
        let template = with_gpus(json!({"image": "rayproject/ray-llm:2.46"}), 8);
        let template = PodTemplate::new(&template, FieldPath::new());
        let mut found = server(&template, &around()).unwrap();
        ray_serve(&object, &mut found);
        found.parallelism.world
    };
    let model = |kwargs: &str| {
        format!(
            "applications:\n- args:\n    llm_configs:\n    - model_loading_config: {{model_id: m}}\n      engine_kwargs: {kwargs}\n"
        )
    };
    assert_eq!(
        ranks(&model(
            "{tensor_parallel_size: 8, pipeline_parallel_size: 2}"
        )),
        known(16)
    );
    assert_eq!(ranks(&model("{tensor_parallel_size: 4}")), known(4));
    assert_eq!(ranks(&model("{}")), known(1));
    assert_eq!(
        ranks(&model("{tensor_parallel_size: many}")),
        Count::Unknown
    );
    assert_eq!(ranks("applications: []"), Count::Unknown);
    assert_eq!(ranks("{"), Count::Unknown);
}

#[test]
fn signs_of_several_pods_are_told() {
    let sign = |args: &[&str]| {
        look(json!({"image": "vllm/vllm-openai", "args": args}))
            .unwrap()
            .4
    };
    assert_eq!(sign(&["-tp", "8"]), None);
    assert_eq!(
        sign(&["-tp", "16", "--nnodes", "2"]).as_deref(),
        Some("2 nodes")
    );
    assert_eq!(
        sign(&["-tp", "8", "--nnodes", "1", "--node-rank", "0"]),
        None
    );
    assert_eq!(sign(&["--headless"]).as_deref(), Some("--headless"));
    assert_eq!(
        sign(&["-tp", "16", "--distributed-executor-backend", "ray"]).as_deref(),
        Some("--distributed-executor-backend ray")
    );
    assert_eq!(sign(&["--distributed-executor-backend", "mp"]), None);
    assert!(sign(&["-dp", "16", "-dpl", "8"]).is_some());
    let ray = look(json!({
        "image": "vllm/vllm-openai",
        "command": ["sh", "-c", "ray start --head && vllm serve m -tp 16"]
    }));
    assert_eq!(ray.unwrap().4.as_deref(), Some("ray start"));
}

#[test]
fn what_serves_nothing_is_no_server() {
    for container in [
        json!({"image": "nvcr.io/nvidia/tritonserver:24.06-py3-sdk", "command": ["/bin/bash", "-c", "--"], "args": ["while true; do sleep 30; done;"]}),
        json!({"image": "vllm/vllm-openai", "command": ["bash", "-c"], "args": ["trap 'exit 0' TERM; sleep 9999 & wait"]}),
        json!({"image": "vllm/vllm-openai", "command": ["sleep", "infinity"]}),
        json!({"image": "vllm/vllm-openai", "command": ["vllm", "bench", "serve"]}),
        json!({"image": "vllm/vllm-openai", "command": ["sh", "-c", "pip install x; sleep inf"]}),
        json!({"image": "quay.io/example/vllme:1"}),
        json!({"image": "example/kvcached-runtime:dev"}),
        json!({"image": "public.ecr.aws/eks-distro/kubernetes/pause:3.2"}),
        json!({"image": "pytorch/pytorch", "command": ["torchrun", "--nproc-per-node", "8", "train.py"]}),
    ] {
        assert_eq!(look(container.clone()), None, "{container}");
    }
    // Without an accelerator nothing serves on one.
    let template = json!({"spec": {"containers": [{"image": "vllm/vllm-openai"}]}});
    assert!(server(&PodTemplate::new(&template, FieldPath::new()), &around()).is_none());
}

#[test]
fn an_unread_entry_point_of_a_server_image_is_a_server_of_unknown_ranks() {
    let found = look(json!({
        "image": "nvcr.io/nvidia/tritonserver:24.06", "command": ["/scripts/entrypoint.sh"]
    }));
    let (title, _, world, ..) = found.unwrap();
    assert_eq!(
        (title.as_str(), world),
        ("Triton Inference Server", Count::Unknown)
    );
    let wrapped = look(json!({
        "image": "example/house", "command": ["/run.sh"], "args": ["--tensor-parallel-size", "8"]
    }));
    assert_eq!(wrapped.unwrap().2, known(8));
}

#[test]
fn the_declaration_makes_a_server_and_init_containers_do_not_count() {
    let template = with_gpus(json!({"image": "example/house", "command": ["/run.sh"]}), 8);
    let template = PodTemplate::new(&template, FieldPath::new());
    assert!(server(&template, &around()).is_none());
    let declared = Surroundings {
        declared: true,
        ..around()
    };
    let found = server(&template, &declared).unwrap();
    assert_eq!(
        (found.engine, found.parallelism.world),
        (None, Count::Unknown)
    );

    let mut template = with_gpus(json!({"image": "vllm/vllm-openai"}), 1);
    template["spec"]["initContainers"] =
        json!([{"image": "vllm/vllm-openai", "args": ["--tensor-parallel-size", "8"]}]);
    let template = PodTemplate::new(&template, FieldPath::new());
    assert_eq!(
        server(&template, &around()).unwrap().parallelism.world,
        known(1)
    );
}

#[test]
fn the_path_points_at_the_flag() {
    let template = with_gpus(
        json!({"image": "vllm/vllm-openai", "args": ["m", "-tp", "8"]}),
        8,
    );
    let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
    let found = server(&template, &around()).unwrap();
    assert_eq!(
        found.parallelism.path().unwrap().to_string(),
        "spec.template.spec.containers[0].args[1]"
    );
}

#[test]
fn a_program_is_the_first_word_whatever_its_folder_and_all_that_follow() {
    for (program, line, taken) in [
        ("vllm serve", &["/opt/bin/vllm", "serve", "m"][..], Some(2)),
        ("vllm serve", &["vllm"], None),
        ("vllm serve", &["vllm", "bench"], None),
        ("vllm", &["vllm-server"], None),
        ("vllm-server", &["vllm"], None),
        // Quoted, it is the name of one program.
        ("vllm serve", &["vllm serve"], None),
        ("vllm", &[""], None),
        ("python -m a.b", &["python3.12", "-u", "-m", "a.b"], Some(4)),
        ("python -m a.b", &["python3.12", "-x1", "-m", "a.b"], None),
        ("python -m a.b", &["pythonic", "-m", "a.b"], None),
        ("python3 -m a.b", &["python3", "-m", "a.b"], Some(3)),
        ("python3 -m a.b", &["python", "-m", "a.b"], None),
        ("python launch.py", &["python", "/app/launch.py"], Some(2)),
        ("mpirun -n*", &["mpirun", "-np"], Some(2)),
    ] {
        let words: Vec<Word> = line
            .iter()
            .map(|text| Word {
                text: (*text).to_owned(),
                origin: Origin::Args(0),
            })
            .collect();
        let name = basename(&words[0].text);
        let seen = matches_program(program, name, &words);
        assert_eq!(seen, taken, "{program} in {line:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_command_line_is_read_without_panic(
        command in proptest::collection::vec("[ -~\n$(){}'\"`=<>;|&\\\\]{0,40}", 0..4),
        args in proptest::collection::vec("(-tp|-tp=|--tensor-parallel-size|--nnodes=|--|-|\\$\\(A\\)|sh|-c|vllm serve){0,1}.{0,12}", 0..6),
        value in ".{0,20}",
    ) {
        let container = json!({
            "image": "vllm/vllm-openai", "command": command, "args": args,
            "env": [{"name": "A", "value": value}, {"name": "B", "value": "$(A)$(A)"}]
        });
        let _ = look(container);
        let script = command.concat();
        let _ = look(json!({"image": "x/sglang", "command": ["bash", "-c", script]}));
    }
}

#[test]
fn what_a_script_cannot_be_read_for_is_unknown_and_never_one_rank() {
    let ranks = |script: &str| {
        look(json!({"image": "vllm/vllm-openai", "command": ["bash", "-c", script]}))
            .unwrap()
            .2
    };
    for script in [
        "ARGS=(-tp 8)\nvllm serve m \"${ARGS[@]}\"",
        "run() { vllm serve m \"$@\"; }\nrun -tp 8",
        ". /etc/env; vllm serve m -tp ${TP:-8}",
        "export $(cat /etc/env); vllm serve m -tp ${TP:-8}",
        "vllm serve m --port 8000 $EXTRA",
    ] {
        assert_eq!(ranks(script), Count::Unknown, "{script}");
    }
    for script in [
        "vllm serve $MODEL -tp 8",
        "vllm serve m --revision $REVISION -tp 8",
        "vllm serve m -tp 8 $EXTRA",
        ". /opt/venv/bin/activate && vllm serve m -tp 8 \"$@\"",
    ] {
        assert_eq!(ranks(script), known(8), "{script}");
    }
    assert_eq!(ranks("vllm serve $MODEL --revision $REVISION"), known(1));
}

#[test]
fn what_env_sets_is_set() {
    let found = look(json!({
        "image": "text-generation-inference",
        "command": ["env", "NUM_SHARD=4", "text-generation-launcher"],
    }));
    assert_eq!(found.unwrap().2, known(4));
}

#[test]
fn what_a_launcher_runs_is_no_server_for_its_flags() {
    let trains = |command: &[&str]| {
        look(json!({"image": "team/train", "command": command, "args": [
            "train.py", "--tensor-parallel-size", "16",
        ]}))
    };
    for launcher in [
        ["torchrun", "--nnodes=2"],
        ["mpirun", "-np=16"],
        ["deepspeed", "--num_nodes=2"],
    ] {
        assert!(trains(&launcher).is_none(), "{launcher:?}");
    }
    assert!(trains(&["python"]).is_some());
}

#[test]
fn servers_that_a_loop_starts_are_several() {
    let several = |script: &str| {
        let container = json!({"image": "vllm/vllm-openai", "command": ["sh", "-c", script]});
        let template = with_gpus(container, 2);
        let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
        server(&template, &around()).unwrap().processes > 1
    };
    assert!(several(
        "for i in 0 1; do CUDA_VISIBLE_DEVICES=$i vllm serve m & done; wait"
    ));
    assert!(!several("for i in 1 2 3; do sleep 1; done; vllm serve m"));
    assert!(!several("while true; do vllm serve m; done"));
}
