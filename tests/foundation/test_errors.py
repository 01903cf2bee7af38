from kdpipe.foundation.errors import BudgetError, ConfigError, KdpipeError, Problem, UnavailableError, VerificationError


def test_an_error_says_what_happened_where_and_what_to_do():
    error = ConfigError("unknown key 'tempreature' in [distill]", at="kdpipe.toml:14", do="did you mean 'temperature'?")
    assert str(error).splitlines() == [
        "error: unknown key 'tempreature' in [distill]",
        "  at:  kdpipe.toml:14",
        "  do:  did you mean 'temperature'?",
    ]


def test_a_part_that_is_not_known_leaves_no_empty_line():
    assert str(KdpipeError("it broke")) == "error: it broke"


def test_several_problems_travel_in_one_error_in_their_order():
    error = ConfigError.gather([Problem("first", at="a:1"), Problem("second", do="mend it")])
    assert error.exit_code == 2
    assert [problem.message for problem in error.problems] == ["first", "second"]
    assert str(error).count("error: ") == 2


def test_each_class_has_the_exit_code_of_the_design():
    assert [kind.exit_code for kind in (KdpipeError, ConfigError, BudgetError, UnavailableError, VerificationError)] == [1, 2, 3, 4, 5]
