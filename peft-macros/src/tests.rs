//! What the macros print, compared with `snapshots/`; `BLESS=1 cargo test -p peft-macros` rewrites the snapshots.

use std::path::PathBuf;

use proc_macro2::TokenStream;
use quote::quote;

use crate::{expand, targets};

/// Compares the pretty-printed expansion with the snapshot of that name.
fn check(name: &str, expansion: &TokenStream) {
    let file = syn::parse2(quote!(fn expansion() { #expansion })).unwrap();
    let printed = prettyplease::unparse(&file);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/snapshots/{name}.rs.snap"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(printed == expected, "{name} differs from its snapshot:\n{printed}");
}

macro_rules! snapshot {
    ($name:ident, $($input:tt)*) => {
        #[test]
        fn $name() {
            check(stringify!($name), &expand::expand(quote!($($input)*)));
        }
    };
}

snapshot!(
    named_struct,
    struct Mlp {
        up: Adapted<Linear>,
        down: Adapted<Linear>,
    }
);
snapshot!(tuple_struct, struct Pair(Adapted<Linear>, usize););
snapshot!(unit_struct, struct Nothing;);
snapshot!(
    transparent_struct,
    #[peft(transparent)]
    struct Wrapper {
        inner: Model,
        #[peft(skip)]
        cache: Cache,
    }
);
snapshot!(
    attributes_of_fields,
    struct Layer {
        #[peft(rename = "attention.self")]
        attention: Attention,
        #[peft(flatten)]
        inner: Inner,
        #[peft(skip)]
        cache: Cache,
        r#type: Adapted<Linear>,
    }
);
snapshot!(
    attributes_of_the_type,
    #[peft(target = "q_proj", target = ["v_proj", "mlp.*"], feedforward = "mlp.*")]
    struct Model {
        q_proj: Adapted<Linear>,
    }
);
snapshot!(
    declared_lora,
    #[peft(target = "q_proj", lora(rank = 8, alpha = 16, dropout = 0.1, rslora, bias = "lora_only"))]
    struct Model {
        #[peft(rank = 4)]
        q_proj: Adapted<Linear>,
    }
);
snapshot!(
    enumeration,
    enum Mlp {
        Nothing,
        Dense(Dense),
        Moe {
            experts: Vec<Dense>,
            #[peft(skip)]
            top_k: usize,
        },
        Pair(Dense, #[peft(rename = "second")] Dense),
    }
);
snapshot!(empty_enumeration, enum Never {});
snapshot!(
    generics,
    #[peft(target = "layer")]
    struct Model<'a, L: Clone = Linear, const N: usize = 2>
    where
        L: Send,
    {
        layer: Adapted<L>,
        list: [Adapted<L>; N],
        name: &'a str,
    }
);
snapshot!(
    explicit_bound,
    #[peft(bound = "L: BaseLayer")]
    struct Model<L> {
        layer: Adapted<L>,
    }
);
snapshot!(
    lifetimes_are_concrete,
    #[peft(target = "layer")]
    struct Model<'a> {
        layer: Adapted<Linear>,
        name: &'a str,
    }
);
snapshot!(
    other_crate_path,
    #[peft(crate = "crate::peft")]
    struct Model {
        layer: Adapted<Linear>,
    }
);
snapshot!(
    errors_come_with_a_stub,
    struct Model<L> {
        #[peft(skp)]
        layer: Adapted<L>,
        #[peft(rank = 0)]
        other: L,
    }
);

#[test]
fn checked_targets() {
    check(
        "checked_targets",
        &targets::expand(quote!(::peft_runtime; Model<u8>; "q_proj", "layers.*.v_proj")),
    );
}

#[test]
fn two_faults_give_two_errors() {
    let text = expand::expand(quote!(
        struct Model {
            #[peft(skp)]
            a: A,
            #[peft(rank = 0)]
            b: B,
        }
    ))
    .to_string();
    assert_eq!(text.matches("compile_error").count(), 2, "{text}");
}

/// For `scripts/macro-cost.sh`: the time it takes to expand many structs of 10 fields.
#[test]
#[ignore = "a measurement, which scripts/macro-cost.sh takes"]
#[expect(clippy::print_stdout, reason = "it is there to print what it measures")]
fn the_macro_alone() {
    let structs =
        std::env::var("PEFT_MACRO_STRUCTS").ok().and_then(|count| count.parse().ok()).unwrap_or(200);
    let inputs: Vec<TokenStream> = (0..structs)
        .map(|number: u32| {
            let name = quote::format_ident!("Model{number}");
            quote! {
                pub struct #name {
                    pub q_proj: Adapted<Linear>,
                    pub k_proj: Adapted<Linear>,
                    pub v_proj: Adapted<Linear>,
                    pub o_proj: Adapted<Linear>,
                    pub embed: Adapted<Embedding>,
                    pub experts: Vec<Adapted<Linear>>,
                    pub norm: Option<Adapted<LayerNorm>>,
                    pub heads: usize,
                    pub epsilon: f64,
                    pub name: String,
                }
            }
        })
        .collect();
    let start = std::time::Instant::now();
    let tokens: usize = inputs.into_iter().map(|input| expand::expand(input).into_iter().count()).sum();
    let time = start.elapsed();
    assert!(tokens > 0);
    println!("only the macro, optimised: {:.1} ms for {structs} structs", time.as_secs_f64() * 1e3);
}
