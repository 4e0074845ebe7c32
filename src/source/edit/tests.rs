//! Every shape by itself, and then all of them at random.

use serde_json::json;

use super::*;

fn change(patch: Value) -> Change {
    Change {
        document: 0,
        item: None,
        patch: serde_json::from_value(patch).unwrap(),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "literals are handed in")]
fn add(path: &str, value: Value) -> Value {
    json!([{"op": "add", "path": path, "value": value}])
}

/// The text after a patch of its first document.
fn edited(text: &str, patch: Value) -> String {
    let edited = apply(text, &[change(patch)]).unwrap();
    assert_eq!(edited.left, [], "{text}");
    edited.text
}

/// What is in the way of a patch.
fn left(text: &str, patch: Value) -> String {
    let edited = apply(text, &[change(patch)]).unwrap();
    assert_eq!(edited.text, text);
    let left = &edited.left[0];
    format!("{} {}", left.path, left.why)
}

#[test]
fn members_go_below_the_last_one_and_keep_its_indentation() {
    let text =
        "spec: # s\n    a: 1 # one\n    # about b\n    b: {x: 1}   # two\n    # after\nc: 2\n";
    assert_eq!(
        edited(text, add("/spec/new", json!({"p": "q", "l": ["1h"]}))),
        "spec: # s\n    a: 1 # one\n    # about b\n    b: {x: 1}   # two\n    new:\n        l:\n          \
         - 1h\n        p: q\n    # after\nc: 2\n"
    );
}

#[test]
fn lists_are_indented_as_the_others_of_the_document() {
    assert_eq!(
        edited("a:\n- 1\nb: {}\n", add("/b/l", json!([{"k": 1, "v": 2}]))),
        "a:\n- 1\nb:\n  l:\n  - k: 1\n    v: 2\n"
    );
    assert_eq!(
        edited(
            "a:\n    - 1 # c\nb: 1\n",
            add("/a/-", json!({"k": "v", "l": []}))
        ),
        "a:\n    - 1 # c\n    - k: v\n      l: []\nb: 1\n"
    );
    assert_eq!(
        edited("l:\n- - 1\n", add("/l/0/-", json!("x"))),
        "l:\n- - 1\n  - x\n"
    );
}

#[test]
fn nothing_null_and_empty_collections_become_blocks() {
    let value = || json!({"policy": "WhenEmpty"});
    for (before, after) in [
        ("disruption:", "disruption:"),
        ("disruption: # none", "disruption: # none"),
        ("disruption: null", "disruption:"),
        ("disruption:   ~ # none", "disruption: # none"),
        ("disruption: {}", "disruption:"),
        ("\"disruption\": { } # none", "\"disruption\": # none"),
    ] {
        let text = format!("spec:\n  {before}\n  # next\n  z: 1\n");
        assert_eq!(
            edited(&text, add("/spec/disruption", value())),
            format!("spec:\n  {after}\n    policy: WhenEmpty\n  # next\n  z: 1\n"),
        );
    }
    assert_eq!(edited("a: []\n", add("/a/-", json!(1))), "a:\n  - 1\n");
    assert_eq!(
        edited("a: null # c\n", add("/a", json!(180))),
        "a: 180 # c\n"
    );
    assert_eq!(edited("a:   # c\n", add("/a", json!("x"))), "a: x   # c\n");
    assert_eq!(
        edited("- {}\n- ~\n", add("/0/a", json!(1))),
        "- {a: 1}\n- ~\n"
    );
    assert_eq!(
        edited("a: &x {} # c\n", add("/a/b", json!(1))),
        "a: &x {b: 1} # c\n"
    );
    assert_eq!(
        edited("a: { # c\n  }\n", add("/a/b", json!(1))),
        "a: { # c\n  b: 1}\n"
    );
    assert_eq!(
        edited(
            "a: # c\nb: 1\n",
            json!([
                {"op": "add", "path": "/a", "value": {"x": 1}},
                {"op": "add", "path": "/a/w", "value": {"z": 1}},
                {"op": "add", "path": "/c", "value": 1},
            ])
        ),
        "a: # c\n  w:\n    z: 1\n  x: 1\nb: 1\nc: 1\n"
    );
}

#[test]
fn an_inner_and_an_outer_addition_at_one_place_keep_their_depth() {
    let patch = json!([
        {"op": "add", "path": "/z", "value": 1},
        {"op": "add", "path": "/a/z", "value": 1},
        {"op": "add", "path": "/a/b/z", "value": 1},
    ]);
    let wanted = "a:\n  b:\n    c: 1\n    z: 1\n  z: 1\nz: 1\n";
    assert_eq!(edited("a:\n  b:\n    c: 1\n", patch.clone()), wanted);
    assert_eq!(edited("a:\n  b:\n    c: 1", patch), wanted.trim_end());
}

#[test]
fn flow_style_stays_flow_style() {
    for (before, after) in [
        ("a: {b: 1}", "a: {b: 1, new: {x: \"1\"}}"),
        ("a: { b: 1, } # c", "a: { b: 1, new: {x: \"1\"}, } # c"),
        ("a: {b}", "a: {b, new: {x: \"1\"}}"),
        ("a: {\"b\": 1}", "a: {\"b\": 1, \"new\": {\"x\": \"1\"}}"),
        (
            "a: {\n    b: 1 # c\n    # d\n  }",
            "a: {\n    b: 1, # c\n    new: {x: \"1\"}\n    # d\n  }",
        ),
        (
            "a: {\n  b: 1, # c\n}",
            "a: {\n  b: 1, # c\n  new: {x: \"1\"},\n}",
        ),
        (
            "a: {b: 1,\n    c: 2}",
            "a: {b: 1,\n    c: 2, new: {x: \"1\"}}",
        ),
    ] {
        let patch = add("/a/new", json!({"x": "1"}));
        assert_eq!(edited(&format!("{before}\n"), patch), format!("{after}\n"));
    }
    assert_eq!(
        edited("a: [1, [2]]\n", add("/a/1/-", json!(3))),
        "a: [1, [2, 3]]\n"
    );
    assert_eq!(
        edited("a: [{b: ~}]\n", add("/a/0/b", json!("1h"))),
        "a: [{b: 1h}]\n"
    );
    assert_eq!(
        left("a: {b: }\n", add("/a/c", json!(1))),
        "a ends with a member without a value"
    );
}

#[test]
fn json_stays_json() {
    let patch = || {
        json!([
            {"op": "add", "path": "/s/new", "value": {"t": [1]}},
            {"op": "add", "path": "/e/x", "value": true},
            {"op": "add", "path": "/o", "value": {"k": null}},
        ])
    };
    let text = "{\n  \"e\": {},\n  \"o\": null,\n  \"s\": {\n    \"a\": \"b\"\n  }\n}\n";
    let wanted = "{\n  \"e\": {\n    \"x\": true\n  },\n  \"o\": {\n    \"k\": null\n  },\n  \"s\": {\n    \
                  \"a\": \"b\",\n    \"new\": {\n      \"t\": [\n        1\n      ]\n    }\n  }\n}\n";
    for (text, wanted) in [
        (text.to_owned(), wanted.to_owned()),
        (text.replace("  ", "\t"), wanted.replace("  ", "\t")),
        (text.replace('\n', "\r\n"), wanted.replace('\n', "\r\n")),
        (
            "{\"e\":{},\"o\":null,\"s\":{\"a\":\"b\"}}".to_owned(),
            "{\"e\":{\"x\":true},\"o\":{\"k\":null},\"s\":{\"a\":\"b\",\"new\":{\"t\":[1]}}}"
                .to_owned(),
        ),
    ] {
        let after = edited(&text, patch());
        assert_eq!(after, wanted);
        serde_json::from_str::<Value>(&after).unwrap();
    }
    let row = "{\"a\": 1}\n{\"b\": {}}\n";
    let second = Change {
        document: 1,
        ..change(add("/b/c", json!(1)))
    };
    assert_eq!(
        apply(row, &[second]).unwrap().text,
        "{\"a\": 1}\n{\"b\": {\"c\": 1}}\n"
    );
}

#[test]
fn texts_of_several_lines_keep_their_lines() {
    for scalar in [
        "|\n    x\n\n",
        "|+\n    x\n\n",
        ">-\n    x\n    # text\n",
        "\"x\n    y\" # c\n",
        "x\n    y\n",
    ] {
        let text = format!("a:\n  b: {scalar}# end\nc: 1\n");
        let after = edited(&text, add("/a/new", json!(1)));
        assert_eq!(after.replace("  new: 1\n", ""), text);
    }
    assert_eq!(
        edited("a: |\n  x\n", add("/new", json!(1))),
        "a: |\n  x\nnew: 1\n"
    );
    assert_eq!(
        edited("- a: |+\n    x\n\n- 1\n", add("/0/new", json!(1))),
        "- a: |+\n    x\n\n  new: 1\n- 1\n"
    );
}

#[test]
fn windows_lines_and_a_missing_last_line_end_stay() {
    assert_eq!(
        edited(
            "a:\r\n  b: 1\r\nc: |\r\n  x\r\n\r\n",
            add("/a/new", json!({"x": 1}))
        ),
        "a:\r\n  b: 1\r\n  new:\r\n    x: 1\r\nc: |\r\n  x\r\n\r\n"
    );
    assert_eq!(
        edited("a: 1\r\nb: 2", add("/new", json!(1))),
        "a: 1\r\nb: 2\r\nnew: 1"
    );
    assert_eq!(
        edited("a: 1 # c", add("/new", json!(1))),
        "a: 1 # c\nnew: 1"
    );
}

#[test]
fn other_documents_stay_byte_for_byte() {
    let text =
        "%YAML 1.2\n---\n# one\na:  1\n--- # two\n'b' :   {}   # b\n...\n---\nbroken: [\n---\nc: 1";
    let second = Change {
        document: 1,
        ..change(add("/b/new", json!("yes")))
    };
    assert_eq!(
        apply(text, &[second]).unwrap().text,
        text.replace("'b' :   {}   # b\n", "'b' :   # b\n  new: \"yes\"\n")
    );
}

#[test]
fn items_of_a_list_are_changed_where_they_stand() {
    let text = "kind: List\nitems:\n- a: 1\n  # c\n- a: *x\n- {b: {}}\n".replace("*x", "2");
    let item = |item, patch| Change {
        item: Some(item),
        ..change(patch)
    };
    let changes = [
        item(0, add("/new", json!(1))),
        item(1, add("/new", json!({"x": 1}))),
        item(2, add("/b/new", json!(1))),
    ];
    assert_eq!(
        apply(&text, &changes).unwrap().text,
        "kind: List\nitems:\n- a: 1\n  new: 1\n  # c\n- a: 2\n  new:\n    x: 1\n- {b: {new: 1}}\n"
    );
}

#[test]
fn what_is_shared_is_left_and_said() {
    let text = "base: &b\n  x: {}\nuse: *b\nmerged:\n  <<: *b\n  y: 1\nown: &o {z: 1}\n";
    assert_eq!(
        left(text, add("/use/new", json!(1))),
        "use is the alias *b: change what it stands for"
    );
    assert_eq!(
        left(text, add("/base/x/new", json!(1))),
        "base has an anchor that is used elsewhere, which would change too"
    );
    assert_eq!(
        left(text, add("/merged/x/new", json!(1))),
        "merged.x comes from a merge key (<<): change it there"
    );
    assert_eq!(
        edited(
            text,
            json!([
                {"op": "add", "path": "/merged/new", "value": 1},
                {"op": "add", "path": "/own/new", "value": 1},
            ])
        ),
        "base: &b\n  x: {}\nuse: *b\nmerged:\n  <<: *b\n  y: 1\n  new: 1\nown: &o {z: 1, new: 1}\n"
    );
    assert_eq!(
        edited("b: &b {x: 1}\nm:\n  <<: *b\n", add("/m/new", json!(1))),
        "b: &b {x: 1}\nm:\n  <<: *b\n  new: 1\n"
    );
    // All of a change, or none of it.
    let both = json!([
        {"op": "add", "path": "/fine", "value": 1},
        {"op": "add", "path": "/use/new", "value": 1},
    ]);
    left(text, both);
    assert_eq!(
        left("a: !!null\n", add("/a", json!({"x": 1}))),
        "a has an anchor or a tag"
    );
}

#[test]
fn scalars_are_replaced_and_quoted_where_they_could_be_misread() {
    let replace = |value: Value| json!([{"op": "replace", "path": "/a", "value": value}]);
    assert_eq!(
        edited("a: 'x'  # c\n", replace(json!("y-z/2"))),
        "a: y-z/2  # c\n"
    );
    for text in [
        "yes",
        "1",
        "1e3",
        "0x10",
        "1_0",
        "12:30",
        "a: b",
        "",
        " a",
        "~",
        "é\n\u{7f}",
        "null",
        "#",
        "-",
    ] {
        let after = edited("a: x\n", replace(json!(text)));
        assert!(after.starts_with("a: \""), "{after}");
    }
    assert_eq!(edited("a: x\n", replace(json!("1h30m"))), "a: 1h30m\n");
    assert!(left("a: |\n  x\n", replace(json!("y"))).contains("several lines"));
}

#[test]
fn a_text_that_would_not_say_it_is_refused() {
    let text = "a: 1 # c\n---\nb: 1\n";
    let wanted = [Some(json!({"a": 1, "x": 2})), None];
    let verdict = |after: &str| verify(text, after, &wanted).map_err(|error| error.0);
    assert_eq!(verdict("a: 1 # c\nx: 2\n---\nb: 1\n"), Ok(()));
    for (after, why) in [
        (text, "it would say something else than it should"),
        ("a: 1\nx: 2\n---\nb: 1\n", "a comment would be lost"),
        (
            "a: 1 # c\nx: 2\n---\nb:  1\n",
            "another document would change",
        ),
        (
            "a: 1 # c\nx: 2\n---\nb: [\n",
            "a document could no longer be read",
        ),
        (
            "a: 1 # c\nx: 2\n",
            "its documents would no longer be told apart",
        ),
    ] {
        assert_eq!(verdict(after), Err(why));
    }
    let overlapping = [0..3, 1..2].map(|at| Splice {
        at,
        with: String::new(),
    });
    assert_eq!(splice(text, overlapping.into()), None);
    let lost = json!([{"op": "remove", "path": "/a"}]);
    assert_eq!(left("a: 1\n", lost), " would lose a member");
}

mod random {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// How a value is written: a number that every choice of style is drawn from.
    #[derive(Clone, Debug)]
    struct Written {
        style: u64,
        steps: usize,
        list: usize,
        newline: &'static str,
        comments: usize,
    }

    impl Written {
        fn draw(&mut self, of: u64) -> u64 {
            // Any fixed permutation will do: the seed is the test's.
            self.style = self
                .style
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.style >> 33) % of
        }

        fn comment(&mut self, margin: &str, out: &mut String) {
            if self.draw(3) == 0 {
                self.comments += 1;
                let _ = write!(out, "{margin}# c{}{}", self.comments, self.newline);
            }
        }

        fn end(&mut self, out: &mut String) {
            if self.draw(4) == 0 {
                self.comments += 1;
                let _ = write!(out, " # c{}", self.comments);
            }
            out.push_str(self.newline);
        }

        fn scalar(&mut self, value: &Value) -> String {
            match value {
                Value::String(text) if self.draw(2) == 0 => word(text, true),
                Value::String(text) => word(text, false),
                Value::Null if self.draw(2) == 0 => "~".to_owned(),
                other => other.to_string(),
            }
        }

        fn flow(&mut self, value: &Value) -> String {
            let mut parts = Vec::new();
            let (open, close) = match value {
                Value::Object(members) => {
                    for (key, value) in members {
                        let quoted = self.draw(2) == 0;
                        parts.push(format!("{}: {}", word(key, quoted), self.flow(value)));
                    }
                    ('{', '}')
                }
                Value::Array(elements) => {
                    parts.extend(elements.iter().map(|value| self.flow(value)));
                    ('[', ']')
                }
                scalar => return self.scalar(scalar),
            };
            let space = if self.draw(2) == 0 { " " } else { "" };
            let comma = if !parts.is_empty() && self.draw(4) == 0 {
                ","
            } else {
                ""
            };
            format!("{open}{space}{}{comma}{space}{close}", parts.join(", "))
        }

        fn block(&mut self, value: &Value, column: usize, out: &mut String) {
            let margin = " ".repeat(column);
            match value {
                Value::Object(members) => {
                    for (key, value) in members {
                        self.comment(&margin, out);
                        let quoted = self.draw(4) == 0;
                        let _ = write!(out, "{margin}{}:", word(key, quoted));
                        self.below(value, column, out);
                    }
                }
                Value::Array(elements) => {
                    for element in elements {
                        self.comment(&margin, out);
                        let nested = !element.is_string() && is_nested(element);
                        if nested && self.draw(3) > 0 {
                            let mut inner = String::new();
                            let comments = self.comments;
                            let mut plain = Self {
                                style: self.style,
                                ..self.clone()
                            };
                            plain.block(element, column + 2, &mut inner);
                            // A comment cannot stand between the dash and the first key.
                            if inner.trim_start().starts_with('#') {
                                self.comments = comments;
                                let _ = write!(out, "{margin}- {}", self.flow(element));
                                self.end(out);
                            } else {
                                *self = plain;
                                let _ = write!(out, "{margin}- {}", inner.trim_start());
                            }
                        } else {
                            let _ = write!(out, "{margin}- {}", self.flow(element));
                            self.end(out);
                        }
                    }
                }
                _ => unreachable!("scalars are written by below"),
            }
        }

        fn below(&mut self, value: &Value, column: usize, out: &mut String) {
            if is_nested(value) && self.draw(3) > 0 {
                self.end(out);
                let step = if value.is_array() {
                    self.list
                } else {
                    self.steps
                };
                self.block(value, column + step, out);
            } else if let Value::String(text) = value
                && text.starts_with("line")
            {
                let margin = " ".repeat(column + self.steps);
                let newline = self.newline;
                let _ = write!(out, " |-{newline}{margin}{text}{newline}");
            } else if value.is_null() && self.draw(3) == 0 {
                self.end(out);
            } else {
                let flow = self.flow(value);
                let _ = write!(out, " {flow}");
                self.end(out);
            }
        }
    }

    fn is_nested(value: &Value) -> bool {
        value.as_object().is_some_and(|members| !members.is_empty())
            || value
                .as_array()
                .is_some_and(|elements| !elements.is_empty())
    }

    fn key() -> impl Strategy<Value = String> {
        "[a-e]|nvidia.com/gpu|yes|1|ä b"
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-5..1000_i64).prop_map(Value::from),
            "[a-z]{1,5}|line of text|1h|yes|: #|ö, \\}|'\"".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec((key(), inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Additions anywhere in a value, as fills make them: members, elements, what takes the place of
    /// null.
    fn grow(value: &mut Value, seed: &mut u64, extra: &Value) {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(7);
        let turn = (*seed >> 33) % 4;
        match value {
            Value::Object(members) => {
                for value in members.values_mut() {
                    grow(value, seed, extra);
                }
                if turn == 0 {
                    members.insert("added".to_owned(), extra.clone());
                }
                if turn == 1 {
                    members.insert("an/other".to_owned(), "1h".into());
                }
            }
            Value::Array(elements) => {
                for value in elements.iter_mut() {
                    grow(value, seed, extra);
                }
                if turn == 0 {
                    elements.push(extra.clone());
                }
            }
            Value::Null if turn == 0 => *value = extra.clone(),
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(384))]
        #[test]
        fn what_is_written_is_what_was_patched_and_nothing_else_is_lost(
            members in vec((key(), value()), 1..5),
            extra in value(),
            style in any::<u64>(),
            mut seed in any::<u64>(),
            steps in 1..5_usize,
            list in 0..3_usize,
            windows in any::<bool>(),
            ends in any::<bool>(),
        ) {
            let before = Value::Object(members.into_iter().collect());
            let mut written = Written {
                style, steps, list, comments: 0,
                newline: if windows { "\r\n" } else { "\n" },
            };
            let mut text = String::new();
            written.block(&before, 0, &mut text);
            if !ends {
                text.truncate(text.trim_end_matches(['\r', '\n']).len());
            }
            let stream = |text: &str| format!("# head\n---\nfirst:   1 # x\n---\n{text}");
            let text = stream(&text);
            let read = |text: &str| super::super::super::read(text).pop().unwrap().unwrap().value;
            prop_assert_eq!(&*read(&text), &before, "{}", text);

            let mut after = before.clone();
            grow(&mut after, &mut seed, &extra);
            let patch = json_patch::diff(&before, &after);
            let edits = [Change { document: 1, item: None, patch }];
            let edited = match apply(&text, &edits) {
                Ok(edited) => edited,
                Err(error) => return Err(TestCaseError::fail(format!("{error}\n{text}"))),
            };
            prop_assert_eq!(&edited.left, &[]);
            prop_assert_eq!(&*read(&edited.text), &after, "{}", edited.text);
            for comment in 1..=written.comments {
                let comment = format!("# c{comment}");
                prop_assert!(edited.text.contains(&comment), "{}", edited.text);
            }
            prop_assert!(edited.text.starts_with("# head\n---\nfirst:   1 # x\n---\n"));
            prop_assert_eq!(edited.text.ends_with('\n'), text.ends_with('\n'));
            let again = [Change { document: 1, item: None, patch: json_patch::diff(&after, &after) }];
            prop_assert_eq!(apply(&edited.text, &again).unwrap().text, edited.text);
        }
    }
}
