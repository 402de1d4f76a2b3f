r"""What is right beside its nearest wrong neighbours, kind by kind.

A grader that pays for the wrong is worse than one that misses the right: each kind of notation that is accepted stands
here with what looks like it and is another answer.
"""

import pytest

from trainer.grading import grade

# kind: [(ground truth, answers that are right, answers that are wrong)]
KINDS = {
    "spacing commands, anywhere": [
        (
            "5",
            [
                r"\,5\,", "5\\ ", r"\quad 5", r"5\qquad", r"5\hspace{1em}", r"5\hspace*{-2pt}", "5~", r"\;5\;",
                r"\!5", r"5\:",
                r"5\>", r"5\thinspace", r"\enspace 5", r"\hskip 1em 5", r"\kern-2pt 5", r"5\mskip 3mu",
                r"\left.5\right.",
                r"\phantom{0}5", r"5\vphantom{x}", r"\mathstrut 5", r"5\\", r"5\hfill", r"\vspace{1ex}5", "\\;\n5",
                r"\negthinspace 5", r"5\medspace", r"5\null",
            ],
            [r"5\,1", r"\,15\,", r"5\hspace{1em}1", r"\phantom{0}6", r"5\\1", r"\left.6\right.", r"5\kern-2pt 1",
             "5~6"],
        ),
        (r"\frac{1}{2}", [r"\frac{\,1\,}{2\,}", r"\frac{1}{2}\,"], [r"\frac{\,2\,}{1\,}", r"\frac{1}{2}\,0"]),
        ("(1,2)", [r"(1,\;2)", r"(\,1\,,\,2\,)", r"\left(\,1, \quad 2\right)"], [r"(2,\;1)", r"(1\,2)"]),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", [r"\begin{pmatrix}\,1\\\,2\end{pmatrix}"],
         [r"\begin{pmatrix}1\,2\end{pmatrix}"]),
    ],
    "a quantity set as text in one piece": [
        (
            "18",
            [r"\text{18 dollars}", r"\text{\$18}", r"\text{18}", r"\mbox{ 18 people }", r"\textbf{18 apples}"],
            [r"\text{18 or 19}", r"\text{18 and 19}", r"\text{18 below zero}", r"\text{180 dollars}",
             r"\text{18.5 dollars}", r"\text{18 more than x}", r"\text{18 thousand}", r"\text{18 - 3}",
             r"\text{18 times 3}", r"\text{18 dollars and 50 cents}", r"\text{18 and a half}", r"\text{-18 degrees}",
             r"\text{at most 18}", r"\text{18 out of 20}", r"\text{18th}"],
        ),
        ("18 cm", [r"\text{18 cm}", r"\text{18 centimeters}"], [r"\text{18 m}", r"\text{18 cm and 2 mm}"]),
        ("1200", [r"\text{1,200 people}", r"\text{1.2 thousand}"], [r"\text{1,200,000 people}"]),
        (r"\text{5:30 PM}", [r"\text{5:30 pm}"], [r"\text{5:30 AM}", r"\text{5:31 PM}", "5"]),
    ],
    "complex numbers": [
        (
            "6 - 5i",
            ["6-5 i", "6+(-5)i", "-5i + 6", "z = 6-5i", r"6-5\,i", r"6 - 5\mathrm{i}", r"6-i\cdot 5", "(3-2i)+(3-3i)",
             r"-i(5+6i)"],
            ["6+5i", "5-6i", "6i-5", "6-5j", "6-5", "6-5x", "-6+5i", "6 - 5i^2", "(6,-5)"],
        ),
        ("5", ["|3+4i|", "|5i|", "(2+i)(2-i)", r"|{-5}|"], ["|3+4x|", "3+4i", "5i", "|3+5i|", "-|5|"]),
        ("2i", [r"\sqrt{-4}", r"\frac{-2}{i}"], ["2", r"\sqrt{4}", "-2i", "2x"]),
        ("-1", ["i^2"], ["i", "ii", "x^2", "j^2"]),
        (r"\frac{1}{2}+\frac{1}{2}i", [r"\frac{1+i}{2}", r"\frac{i}{1+i}", "0.5+0.5i"], [r"\frac{1-i}{2}",
         r"\frac{1+i}{4}"]),
        (r"1+\sqrt{3}i", [r"1+i\sqrt3"], [r"1-i\sqrt3", r"1+\sqrt3"]),
        (r"e^{i\pi/3}", [r"\frac{1}{2}+\frac{\sqrt3}{2}i"], [r"\frac{1}{2}-\frac{\sqrt3}{2}i"]),
        ("a+bi", ["bi+a"], ["a-bi", "b+ai"]),
        ("x_i+1", ["1+x_i"], ["ix+1", "x_j+1"]),  # here i is an index
        ("x_i+i^2", ["i^2+x_i"], ["x_i-1"]),
    ],
    "prose": [
        (
            r"\text{at most 1.5 apples each}",
            [r"\text{at most 1.50 apples each}", "At most 1.5 apples each."],
            [r"\text{at most 15 apples each}", r"\text{at most 1.6 apples each}", r"\text{at most 1 5 apples each}"],
        ),
        (r"\text{between 1 and 2}", [r"\text{Between 1 and 2}"], [r"\text{between 12}", r"\text{between 1 and 20}"]),
        (r"\text{(a+b)c is even}", [r"\text{(a + b)c is even}"], [r"\text{a+bc is even}", r"\text{a+b c is even}"]),
        (r"\text{5! ways}", [r"\text{5! Ways}"], [r"\text{5 ways}"]),
        (r"\text{f'(x) is positive}", [r"\text{f'(x) is positive.}"], [r"\text{f(x) is positive}"]),
        (r"\text{about 2/3 of it}", [r"\text{about 2/3 of it!}"], [r"\text{about 23 of it}",
         r"\text{about 3/2 of it}"]),
        (r"\text{no more than 5\%}", [r"\text{No more than 5\%}"], [r"\text{no more than 5}", r"\text{more than 5\%}"]),
        (r"\text{Zoë}", ["Zoë", "zoë"], ["Zo", "Zoe"]),
        (r"\text{even}", ["Even."], ["not even", "odd", "uneven"]),
    ],
    "inequalities and intervals": [
        (
            "1<x<2",
            ["1 < x < 2", "2>x>1", "(1,2)", r"x>1 \text{ and } x<2", "x>1 and 2>x", r"\{x \mid 1<x<2\}",
             r"1 \lt x \lt 2",
             r"x\in(1,2)", r"\{x\in\mathbb{R}: 1<x<2\}", "1&lt;x&lt;2"],
            ["1<x<3", r"1<x\le 2", r"x>1 \text{ or } x<2", "(1,2]", "2<x<1", "1<y<2", "x<2", "x=1", "1>x>2"],
        ),
        ("x>2", ["2<x", r"(2,\infty)", r"x\in(2,\infty)", "x > 2"], ["x<2", "2>x", r"x\ge 2", r"[2,\infty)",
            r"(-\infty,2)", "2"]),
        ("[0,1)", [r"0\leqslant x<1", r"1>x\geq 0", "0<=x<1"], ["0<x<1", r"0\le x\le 1", "(0,1]"]),
        (
            r"(-\infty,1)\cup(2,\infty)",
            [r"x<1 \text{ or } x>2", "x>2 or x<1", r"x < 1 \lor x > 2"],
            ["1<x<2", r"x<1 \text{ and } x>2", r"x\le 1 \text{ or } x>2", "x<1", "x<2 or x>1"],
        ),
        (r"x\ne 2", [r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}", r"x\neq 2"], ["x=2", r"\mathbb{R}",
         r"x\ne 3"]),
        (r"\mathbb{R}", [r"(-\infty,\infty)", "ℝ"], [r"x\ne 0", "R", r"(0,\infty)"]),
        (r"\theta>2", [r"2<\theta"], [r"2>\theta"]),
    ],
    "equations in another form": [
        (
            "y=2x+3",
            ["2x-y+3=0", "y-2x=3", "2x+3=y", "y = 3+2x", "2y=4x+6", r"x=\frac{y-3}{2}", "2x+3", r"\frac{y-3}{2}=x"],
            ["2x-y-3=0", "2x+y+3=0", "2x-y+3", "0", "x=2y+3", "4x-2y+3=0", "y=2x", "y>2x+3", "2x-y+3=1", "y=2x-3"],
        ),
        ("2x-y+3=0", ["y=2x+3"], ["y=2x-3", "2x-y+3", "2x+3"]),
        ("2x+3", ["y=2x+3"], ["2x-y+3=0", "2x+3=0"]),
        ("x^2+y^2=4", ["4-x^2=y^2", "2x^2+2y^2=8"], ["x^2+y^2=2", "x^2-y^2=4", "x+y=2"]),
        ("y > 2x+3", ["2x+3<y", "2x-y+3<0"], ["2x-y+3>0", r"y\ge 2x+3", "y<2x+3", "y=2x+3"]),
        ("y=x", ["x=y", "x-y=0"], ["x=-y", "x+y=0"]),
        ("x=5", ["5", "5=x"], ["2x=10", "x=-5", "y=5", "x-5"]),
        ("2x=5", ["5=2x"], ["5", "x=5"]),
    ],
    "sides of an equation": [
        (
            "5",
            ["x=5", r"x_1 = 5", "AB=5", "|AB| = 5", "[ABC]=5", "f(2)=5", "P(A)=5", r"f^{-1}(3)=5", "x=2+3=5", "2+3=5",
             "Area = 5",
             r"\text{Area}=5", "Total cost = 5", r"\text{Total cost: }5", r"\sqrt{25}=5", "a_{10}=5",
             r"\overline{AB}=5",
             r"\text{Area of }ABC=5", r"\lim_{x\to 2}f(x)=5", r"\max f = 5",
             r"2 \text{ apples} + 3 \text{ apples} = 5 \text{ apples}",
             r"x = \frac{y}{z} = 5", r"\angle A = 5^\circ", r"\theta = 5"],
            ["2x=5", "2+2=5", "x+2=5", "x^2=5", "-x=5", "x=2+2=5", "1=5", "|x|=5", "x(x+1)=5", "2x=10",
             r"\frac{x}{2}=5", "abc=5",
             "5=x=6", r"\text{not } x = 5", "half of it = 5", r"\text{twice the area}=5", "x+y=5", "x-5=0", "5=6",
             "x=6=5", "5=2x"],
        ),
        ("6", [r"A=\frac12 bh=\frac12(3)(4)=6"], [r"A=\frac12 bh=\frac12(3)(5)=6"]),
        ("0.5", [r"\frac{AB}{CD}=\frac12"], [r"\frac{a}{b}=\frac12", r"\frac{AB}{2}=\frac12"]),
        ("3", [r"\log_2 8=3"], [r"\log_2 9=3", r"\log_2 x=3"]),
        ("8", ["5 dollars + 3 dollars = 8 dollars"], ["5 dollars + 2 dollars = 8 dollars"]),
        (r"\frac{22}{7}", [r"\frac{22}{7}\approx 3.14", r"x=\frac{22}{7}\approx 3.1"], ["3.14",
         r"\frac{22}{7}\approx 3.5"]),
        ("3.14", [r"\pi\approx 3.14", r"\approx 3.14", r"x\approx 3.14", r"x = \pi \approx 3.14"], [r"\pi\approx 3.2",
            r"2x\approx 3.14"]),
        ("14.14", [r"10\sqrt{2}\approx 14.14"], [r"10\sqrt{3}\approx 14.14"]),
        (r"10\sqrt2", [r"10\sqrt{2}\approx 14.14"], [r"10\sqrt{2}\approx 99", "14.14"]),
        ("3.5", [r"\frac{7}{2}\approx 3.5"], [r"\frac{22}{7}\approx 3.5"]),
    ],
    "labels": [
        (
            "5",
            ["The answer is 5", r"\text{The answer is }5", "Answer: 5", r"\text{Answer: }5",
             "So the final answer is: 5.", "Total cost: 5",
             "The value of x is 5", r"\text{The value of }x\text{ is }5", r"\text{The answer is } \$5"],
            ["The answer is not 5", r"\text{The answer is not }5", "Half of the answer is 5", "The answer is 6",
             "The answer is 5 or 6",
             r"\text{Twice the answer is }5", "The answer is less than 5", "The answer is twice 5",
             "None of the answers is 5"],
        ),
        ("Evelyn", ["The answer is Evelyn"], ["The answer is not Evelyn", "The answer is Evelyn or Sarah"]),
    ],
    "choices": [
        (
            "A",
            ["(A)", r"\text{(A)}", "(A) because it is", "A. 12", "(A) 12", "option A", r"\mathbf{A}", "a",
             "The answer is (A)"],
            ["(A)(B)", "(A) (B)", "A/B", "A, B", "A and B", "(A) or (B)", "A. B", "(A) and B", "AB", "A dog", "B",
             "(B) not (A)", "(A), (B)"],
        ),
    ],
    "words that negate or scale": [
        (
            "12",
            ["12 apples", "12 degrees", "12 dollars in all", "twelve"],
            ["12 below zero", "12 degrees below zero", r"12 \text{ below zero}", "negative 12", "minus twelve",
             "12 under par", "12 loss",
             "12 tenths", "12 hundredths", "12 dozen", "12 thousand", "12 squared", "12 factorial", "12 or more",
             "12 at most", "12!",
             "no 12", "not 12", "12 is wrong", "12 in debt", "12 basis points", "12 grand"],
        ),
        ("-12", ["negative 12", "minus 12", "minus twelve"], ["12 below", "12"]),
        ("24", ["2 dozen", "two dozen"], ["2", "2 dozens of dozens"]),
        ("500000", ["5 lakh", "five hundred thousand"], ["5"]),
    ],
    "thousands and tuples": [
        ("1234", ["1,234", r"1{,}234", r"1\;234", r"1~234", r"1\:234", "1 234".replace(" ", "\u202f"), r"1\,234",
            r"1\ 234"],
         ["(1,234)", r"\{1,234\}", "[1,234]", "1.234", "1,23,4", "12,34", r"1\;23\;4"]),
        ("1000", ["1 000", "1'000", "1’000", "1 000 apples", r"\$1 000", "$1 000$", "1 000.0", "x = 1 000",
            r"\text{1 000 km}", r"\sqrt{1 000 000}", "1 000 dollars per month", r"1 000\text{ cm}^{2}"],
         ["1 00", "10 00", "1 0000", "1'00", "1'0000", "0 001 000", "1 001", "1  000 000", "1 000^2", "1 000/3",
            "1 000, 2", "1 000 or 2"]),
        ("1", ["1"], ["1 000", "1'000", "1 000 apples"]),
        ("3000000", ["3 000 000", "3'000'000", "3 000 000 people"], ["3 000", "3 000 00", "3 000 000 000", "3'000'00"]),
        ("2345", ["2 345 apples", "2'345 apples", r"\text{2 345 apples}"], ["2 apples", "345 apples", "2.345 apples",
            "12 345 apples", "23 45 apples"]),
        ("-1234.5", ["-1 234.5", "-1'234.5"], ["1 234.5", "-1 234,5", "-1 234. 5"]),
        ("12", ["12"], ["1 2", "1'2"]),
        ("1020", ["1020"], ["10 20", "10'20"]),
        ("12345", ["12 345", "12'345"], ["1 2 345", "12 34 5", "12 345 6", "12\n345", "123 45"]),
        ("10200300", ["10 200 300"], ["10 20 0300", "1 0200 300", "10, 200, 300 and 1"]),
        ("10 20", ["10 20"], ["1020", "10", "20"]),
        ("5551234567", ["5551234567"], ["555 123 4567"]),
        (r"2\frac{100}{200}", ["2.5", "2 100/200"], ["2100/200", "10.5"]),
        ("x^{1000}", ["x^{1000}"], ["x^1 000"]),
        (r"\text{at most 1500 apples each}", [r"\text{at most 1 500 apples each}"], [r"\text{at most 1 50 apples each}",
            r"\text{at most 15 apples each}"]),
        ("1,234", ["1234", "1, 234"], ["(1,234)", r"\{1,234\}"]),
        ("(1,234)", ["(1, 234)"], ["1234", "1,234", "(1234)", "1,2,34", "[1,234]"]),
        ("(1,234,567)", ["(1, 234, 567)"], ["(1234,567)", "(1,234567)", "1234567", "(1234567)"]),
        ("(1000,2000)", ["(1,000, 2,000)", r"(1{,}000, 2{,}000)", r"(1\,000, 2\,000)"], ["(1,000,2,000)",
            "(1, 000, 2, 000)"]),
        ("1234567", [r"1\,234\,567", r"1~234~567", "1,234,567"], ["(1,234,567)", r"1\,234\,56"]),
    ],
    "money behind the number": [
        ("5", [r"5\$", "5$", "5 €", "5€", "5 USD", "5£", r"5\text{ \$}", "5 US dollars", r"US\$5", r"5\,\text{EUR}",
            "5 bucks"],
         [r"6\$", r"50\$", "5¢ more", r"-5\$"]),
        (r"\$5", [r"5\$", "5 dollars", "5 USD"], ["5 €", "5£", "5 euros", "5 cents"]),
    ],
    "Unicode": [
        ("x^2", ["x²", "x^{²}".replace("^{²}", "²")], ["x2", "x³", "2x"]),
        ("10^{-3}", ["10⁻³", "0.001"], ["10³", "10-3"]),
        ("25", ["5²"], ["52", "2⁵"]),
        ("2.5", ["2½", "5⁄2", r"2 \frac12"], ["1½", "21/2", "2¼"]),
        (r"\frac{7}{8}", ["⅞"], ["⅝", "78"]),
        ("53", ["５３", "٥٣", "𝟓𝟑", "५३"], ["٣٥", "５", "５３０"]),
        ("(2,3)", ["（２，３）", "（2、3）"], ["（３，２）"]),
        ("2", ["∛8", "√4"], ["√8", "∛4"]),
        ("x_1+x_2", ["x₁+x₂"], ["x1+x2", "x₁+x₃"]),
        (r"0.3\overline{6}", ["0.36\u0305"], ["0.36", "0.3\u03056\u0305"]),
        ("5", ["5％", "＋5", "５．０"], ["－5", "⑤⑤"]),
    ],
    "LaTeX of other schools": [
        (r"\frac{1}{2}", [r"{1 \over 2}", r"1 \over 2", r"\sfrac{1}{2}", r"\nicefrac12", r"{{1}\over{2}}",
         r"\mathbf{\frac{1}{2}}"],
         [r"{2 \over 1}", r"{12 \over 2}", r"1 \over 2 1"]),
        ("5", [r"\textcolor{red}{5}", r"\color{red}5", r"{\color{blue} 5}", r"5 \tag{1}", r"5\tag*{(2)}",
            r"\underline{5}", r"\Large 5",
               r"\fcolorbox{red}{white}{5}", r"\colorbox{yellow}{5}", r"\bbox[5px]{5}", r"\ensuremath{5}", r"{\bf 5}",
               r"\textup{5}"],
         [r"\textcolor{red}{6}", r"6\tag{5}", r"\color{5}6", r"\overline{5}", r"\cancel{5}", r"\not 5", r"\lnot 5"]),
        ("1", [r"1\tag{5}"], [r"5\tag{1}", r"15\tag{}"]),
        (r"\sqrt{2}", [r"\sqrt(2)", "sqrt(2)", "√(2)", r"\sqrt 2", r"\root 2 \of 2"], [r"\sqrt(3)", "2", r"\sqrt(2)2",
         r"\sqrt[3](2)"]),
        (r"\sqrt{x(y+1)}", [r"\sqrt(x(y+1))"], [r"\sqrt(x)(y+1)"]),
        ("-2", [r"\sqrt[3]{-8}", r"\sqrt[3](-8)"], [r"\sqrt[3]{8}", r"\sqrt{-8}"]),
        (r"\binom{5}{2}", [r"{5 \choose 2}", "10"], [r"{2 \choose 5}"]),
        (r"\{1,2\}", [r"\left\lbrace 1,2\right\rbrace", r"\left\{1,2\right\}"], [r"\left(1,2\right)"]),
        ("(1,2)", [r"\left<1,2\right>", r"\langle 1,2\rangle"], [r"\left<2,1\right>"]),
    ],
    "number words": [
        ("5", ["five", r"\text{five}", "Five", "five apples", r"\text{five } \text{apples}"],
         ["six", "fifth", "five hundred", "five or six", "five point one", "fifty", "five-sided", "twenty five",
          "five two", "no five"]),
        ("21", ["twenty-one", "twenty one", r"\text{Twenty-one}"], ["twenty", "one", "one twenty", "twenty-first"]),
        ("205", ["two hundred and five", "two hundred five"], ["two hundred", "two and five", "two hundred and fifty"]),
        ("15", ["fifteen"], ["fifty", "five"]),
        (r"\frac{2}{3}", ["two thirds", "two-thirds"], ["three halves", "one third", "two", "third"]),
        ("1.5", ["one and a half", "three halves"], ["one", "a half", "one half", "one and two"]),
        ("1", ["one"], ["one or more", "no one", "one third", "someone", "one-way", "one hundred"]),
        ("0", ["zero"], ["ten", "zero point one", "no"]),
        ("(1,2)", ["one, two"], ["two, one"]),
    ],
    "ratios": [
        ("3:4", ["3 to 4", r"3 \text{ to } 4", "3 : 4", r"3\colon 4", "3∶4"], ["4 to 3", "3 to 5", "34", "3/4", "6:8",
            "3", "3 to 4 to 5", "3, 4"]),
        ("3/4", ["0.75"], ["3:4", "3 to 4"]),
        ("10:05", ["10:05"], ["10:5", "10:50"]),  # a time of day
    ],
    "and, or without spaces": [
        ("(1,2),(3,4)", ["(3,4)or(1,2)", "(1,2)and(3,4)"], ["(1,2)or(4,3)"]),
        ("1,-2", ["-2 and 1", "-2or1"], ["-2or-1"]),
    ],
    "named pairs": [
        ("(2,3)", ["(x,y)=(2,3)", "(x, y) = (2, 3)", "x=2, y=3", r"x=2 \text{ and } y=3", "(a,b)=(2,3)"],
         ["(x,y)=(3,2)", "(y,x)=(2,3)", "x=3,y=2", "y=2,x=3", "(x,y)=(2,4)", "(x,y)=2", "(x,y,z)=(2,3)"]),
        ("(x,y)=(2,3)", ["(2,3)", "(y,x)=(3,2)", "y=3,x=2"], ["(a,b)=(2,3)", "(3,2)", "(y,x)=(2,3)"]),
        ("x=2,y=3", ["(x,y)=(2,3)", "y=3, x=2"], ["x=3,y=2", "(x,y)=(3,2)"]),
        ("(3,2)", ["y=2, x=3", "b=2, a=3"], ["y=3, x=2", "x=2, y=3", "b=3, a=2"]),
        ("(1,2,3)", ["z=3, x=1, y=2"], ["z=1, x=3, y=2", "z=3, y=1, x=2"]),
    ],
    "bases": [
        ("52_8", ["52", "52_{8}"], ["52_7", "42", "53"]),
        ("52", ["52_{10}"], ["52_8"]),
    ],
    "what is left over": [
        ("5", ["5.", "5;", "+5", "(5)", "{5}"],
         ["5'", "5+", "5-", "5/", "5^", "(5", "5)", "^5", "!5", "5...", r"5\ldots", "x_5", "3rd", "1/5", r"\sin 5",
          r"5 \mod 7", "5e", "<5", "5>", "1.5."]),
    ],
}  # fmt: skip

CASES = [
    pytest.param(gold, right, wrong, id=f"{kind}-{number}")
    for kind, cases in KINDS.items()
    for number, (gold, right, wrong) in enumerate(cases)
]


@pytest.mark.parametrize(("gold", "right", "wrong"), CASES)
def test_right_answers_are_paid_and_their_nearest_wrong_neighbours_are_not(gold, right, wrong):
    missed = [answer for answer in right if not grade(f"So we get \\boxed{{{answer}}}.", gold)]
    paid = [answer for answer in wrong if grade(f"So we get \\boxed{{{answer}}}.", gold)]
    assert (missed, paid) == ([], [])
