"""Short texts of several kinds, to see how many bytes a tokenizer packs into a token of each."""

PROSE = """\
The lighthouse keeper had not spoken to anyone since the supply boat left in October, and by the end of winter he had begun to
read the weather reports aloud, giving each of the coastal stations a voice of its own. North Head was solemn. Gull Island
complained. When the wind came round to the east he would stand on the gallery with a mug of tea going cold in his hands and
argue with them all.

"You said it would clear by noon," he told the radio.

The radio crackled, and said nothing that it had not said before. Below him the sea went on taking the island apart, one
pebble at a time. His grandfather had measured it: eleven inches a year, on average, from the southern shore. At that rate the
tower would stand for another three hundred years, which seemed long enough for anybody, although nobody had asked the sea.

There are three ways of keeping a light. The first is to do exactly what the book says, and the book is very good. The second
is to understand why the book says it. The third, which takes about twenty years, is to forget the book and find that you have
been doing what it says all along. He was, he thought, somewhere between the second and the third; he still looked up the
procedure for a broken mantle, but he no longer needed to look for the page.

In March the boat came back. It brought flour, paraffin, four months of newspapers and a young woman with a box of instruments
who explained, while he was still trying to remember how to answer, that the service had decided to make the light automatic,
and that she would be staying for six weeks to see how it was done.
"""

CODE = '''\
from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(order=True)
class Visit:
    distance: float
    node: str = field(compare=False)


def shortest_paths(graph: Mapping[str, Mapping[str, float]], start: str) -> dict[str, float]:
    """Dijkstra's algorithm: the distance from `start` to every node that can be reached."""
    distances: dict[str, float] = {}
    queue = [Visit(0.0, start)]
    while queue:
        visit = heapq.heappop(queue)
        if visit.node in distances:
            continue
        distances[visit.node] = visit.distance
        for neighbour, length in graph.get(visit.node, {}).items():
            if length < 0:
                raise ValueError(f"negative length {length!r} on {visit.node} -> {neighbour}")
            if neighbour not in distances:
                heapq.heappush(queue, Visit(visit.distance + length, neighbour))
    return distances


#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) {
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    int *values = malloc(sizeof(int) * (size_t)(argc - 1));
    for (int i = 1; i < argc; i++)
        values[i - 1] = atoi(argv[i]);
    qsort(values, (size_t)(argc - 1), sizeof(int), compare);
    for (int i = 0; i < argc - 1; i++)
        printf("%d%s", values[i], i + 2 < argc ? ", " : "\\n");
    free(values);
    return EXIT_SUCCESS;
}

export async function fetchUser(id, { signal } = {}) {
  const response = await fetch(`/api/users/${encodeURIComponent(id)}`, { signal });
  if (!response.ok) {
    throw new Error(`user ${id}: ${response.status} ${response.statusText}`);
  }
  return response.json();
}

SELECT c.name, COUNT(*) AS orders, SUM(o.total) AS spent
FROM customers AS c JOIN orders AS o ON o.customer_id = c.id
WHERE o.created_at >= DATE '2024-01-01' AND o.status <> 'cancelled'
GROUP BY c.name HAVING SUM(o.total) > 1000 ORDER BY spent DESC LIMIT 20;
'''

NUMBERS = "".join(
    [
        "date,open,high,low,close,volume\n",
        *(
            f"2023-{month:02d}-{day:02d},{170 + (month * 37 + day * 11) % 29}.{(day * 73) % 100:02d},"
            f"{185 + (month * 17 + day * 7) % 19}.{(day * 31) % 100:02d},{160 + (month * 13 + day * 5) % 9}.{(day * 57) % 100:02d},"
            f"{171 + (month * 29 + day * 3) % 23}.{(day * 91) % 100:02d},{(month * 7_919_317 + day * 104_729) % 90_000_000}\n"
            for month in range(1, 13)
            for day in (3, 11, 19, 27)
        ),
        "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651\n",
        "1,234,567.89 - 987,654.32 = 246,913.57; 17 * 23 = 391; 2**31 - 1 = 2147483647; 1e-09; 0x7fff; 99.97%; +44 20 7946 0958\n",
    ]
)

OTHER_SCRIPTS = """\
Все счастливые семьи похожи друг на друга, но каждая остаётся собой: одни молчат за ужином, другие спорят до полуночи.
Поезд пришёл на рассвете, и на перроне никого не было, кроме сторожа с фонарём и большой рыжей собаки.
Το λεωφορείο έφυγε πριν από πέντε λεπτά, και το επόμενο έρχεται σε μία ώρα· καλύτερα να πάμε με τα πόδια.
春天来了，河边的柳树又绿了。老人每天早上都到桥头去，坐在那块石头上，看来来往往的人。他说，水比人记得更清楚。
机器学习模型从大量文本中学习语言的规律，然后逐个预测下一个词。训练需要很多时间，也需要很多电。
昨日は朝から雨が降っていたので、図書館で一日中本を読んで過ごしました。帰り道、空がだんだん明るくなってきた。
コーヒーを一杯飲んでから、もう一度最初から計算をやり直してみましょう。
오늘 아침에는 안개가 짙게 끼어서 강 건너편이 보이지 않았다. 그래도 시장은 여느 때처럼 사람들로 붐볐다.
ذهبنا إلى السوق في الصباح الباكر واشترينا الخبز والزيتون والجبن، ثم جلسنا تحت شجرة التين حتى انتصف النهار.
הספר שחיפשת נמצא על המדף העליון, ליד החלון, בין המילון לבין האטלס הישן.
बारिश के बाद मिट्टी की खुशबू पूरे गाँव में फैल गई, और बच्चे नंगे पाँव गलियों में दौड़ने लगे।
เมื่อวานนี้ฝนตกหนักมาก ถนนจึงเต็มไปด้วยน้ำ แต่ตลาดก็ยังเปิดตามปกติ
গ্রামের পাশ দিয়ে একটি ছোট নদী বয়ে গেছে, বর্ষাকালে তার জল উঠোন পর্যন্ত চলে আসে।
தென்றல் மெதுவாக வீசியது; கடற்கரையில் மக்கள் மாலை நேரத்தை அமைதியாகக் கழித்தனர்.
მთის ძირას პატარა სოფელი იყო, სადაც ყველა ერთმანეთს იცნობდა.
"""

SAMPLES = {"prose": PROSE, "code": CODE, "numbers": NUMBERS, "non-Latin scripts": OTHER_SCRIPTS}
