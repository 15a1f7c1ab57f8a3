"""What random scenarios found: combinations of options and operations that nobody had thought of, each made small."""

from oracle.adapters import trained
from oracle.spec import (Case, active, adalora, base_weights, delete, disable, enable, fails, forward, grads, ia3, load, lora,
                         merge, scale, state_dict, train, unmerge, weighted)

from .common import EMB_CONV1D, MLP, bert, blocks, gpt2, llama

SGD = train("sgd", 0.05, 4)
#: Three names whose order of loading is not that of the alphabet, in which PEFT looks for the next active adapter.
THREE = [load("red"), load("green"), load("blue"), forward(), delete("red"), forward()]

DELETION = [
    Case("found_delete_and_a_full_copy_of_another", MLP,
         {"red": lora("lin0"), "green": lora("lin0", modules_to_save=["lin1"]), "blue": lora("lin0", r=2)}, THREE),
    Case("found_delete_among_full_copies", MLP,
         {"red": lora("lin0", modules_to_save=["lin1"]), "green": lora("lin0", modules_to_save=["lin1"]),
          "blue": lora("lin0", r=2)}, [*THREE, active("green"), forward(), grads()]),
    Case("found_delete_wakes_the_full_copy_where_there_was_one", MLP,
         {"red": lora("lin0", modules_to_save=["lin1"]), "green": lora("lin0"),
          "blue": lora("lin0", r=2, modules_to_save=["lin1"])}, THREE),
    Case("found_delete_leaves_a_full_copy_asleep", MLP,
         {"red": lora("lin0"), "green": lora("lin0"), "blue": lora("lin0", r=2, modules_to_save=["lin1"])},
         [*THREE, active("blue"), forward()]),
    Case("found_delete_on_each_layer", blocks(),
         {"red": lora("q_proj", "up_proj"), "green": lora("q_proj"), "blue": lora("up_proj", "v_proj")},
         [*THREE, active("green"), forward()]),
    Case("found_load_after_a_deletion", blocks(),
         {"red": lora("q_proj", "up_proj"), "green": lora("q_proj"), "blue": lora("up_proj"),
          "white": lora("down_proj")}, [*THREE, load("white"), forward(), active("white"), forward()]),
]

SAVED = [
    Case("found_bias_all_and_saved_container", blocks(2), {"first": lora("q_proj", bias="all", modules_to_save=["mlp"])},
         [load("first"), forward(), grads(), SGD, forward(), state_dict("first")]),
    Case("found_bias_all_and_saved_container_among_others", bert(),
         {"first": lora("query", bias="all", modules_to_save=["intermediate"]), "second": lora("query", r=2)},
         [load("first"), load("second"), forward(), state_dict("first"), active("second"), forward(),
          active("first"), grads(), delete("second"), forward()], still=("key.bias",)),
    Case("found_train_beside_the_saved_head", llama(), {"first": lora("lm_head", "q_proj")},
         [load("first"), SGD, forward(), state_dict("first")]),
]

TOKENS = [
    Case("found_tokens_at_the_padding_index", bert(first_token=0), {
        "first": lora("query", trainable_token_indices=[0, 2, 3, 5, 7, 11, 13, 17])},
         [load("first"), forward(), grads(), train("sgd", 0.3, 4), forward()]),
    Case("found_all_linear_and_tokens", EMB_CONV1D,
         {"first": lora(target_modules="all-linear", trainable_token_indices={"emb": [20, 28, 3, 77]})},
         [load("first"), forward(), state_dict("first"), weighted("mix", ["first"], [0.5], "linear"), active("mix"),
          forward(), state_dict("mix")]),
    Case("found_all_linear_and_tokens_of_two", blocks(),
         {"first": lora(target_modules="all-linear", trainable_token_indices={"embed": [1, 5, 9]}, r=2),
          "second": lora(target_modules="all-linear", trainable_token_indices={"embed": [1, 5, 9]}, r=1)},
         [load("first"), load("second"), weighted("mix", ["first", "second"], [0.5, -1.0], "cat"), active("mix"),
          forward(), merge(), forward(), unmerge(), active("second"), forward()], salt=1),
    Case("found_adalora_tokens", blocks(2), {
        "first": adalora("q_proj", "up_proj", trainable_token_indices={"embed": [1, 5]}, tinit=1, tfinal=2)},
         [load("first"), forward(), grads(), state_dict("first"), train("sgd", 0.05, 8), forward(), merge(), forward(),
          unmerge(), state_dict("first")]),
    Case("found_adalora_trained_tokens", llama(tied=True), {
        "first": adalora("q_proj", "v_proj", trainable_token_indices=[2, 7], tinit=1, tfinal=2,
                         recipe=trained(steps=6))},
         [load("first"), forward(), disable(), forward(), enable(), forward(), state_dict("first")]),
]

SUMS = [
    Case("found_ia3_sum_with_a_feedforward_name_of_no_layer", MLP,
         {"first": ia3(target_modules="lin0", exclude_modules=["lin1"], feedforward=["lin1"]),
          "second": ia3(target_modules="lin0", feedforward=[])},
         [load("first"), load("second"), weighted("mix", ["first", "second"], [0.5, 1.0]), active("mix"), forward(),
          state_dict("mix")]),
    Case("found_sum_then_trained", MLP, {"first": lora("lin0", r=3), "second": lora("lin0", r=2)},
         [load("first"), load("second"), weighted("mix", ["first", "second"], [0.5, 1.0], "cat"), active("mix"),
          grads(), train("adamw", 0.02, 4), forward(), active("first"), forward()]),
    Case("found_sum_while_merged", MLP, {"first": lora("lin0", "lin1"), "second": lora("lin0")},
         [load("first"), load("second"), merge("second"), forward(), weighted("mix", ["first"], [2.0], "linear"),
          forward(), base_weights(), active("mix"), forward()]),
    Case("found_load_while_another_is_merged", gpt2(), {"first": lora("c_attn"), "second": lora("c_fc", "c_attn"),
                                                       "third": lora("c_proj")},
         [load("first"), load("second"), merge("second"), forward(), load("third"), forward(), active("second"),
          scale("second", 0.5), forward()]),
]

CASES = [*DELETION, *SAVED, *TOKENS, *SUMS]
