import json

import pytest

from bench.output import IN_FLIGHT, OutputError, read_ab, read_iperf, read_numbers, read_wrk

WRK = """Running 1s test @ http://127.0.0.1:8999/
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.84ms    1.91ms  10.19ms   84.85%
    Req/Sec     1.31k   467.39     1.79k    80.00%
  Latency Distribution
     50%  880.00us
     75%    2.46ms
     90%    4.84ms
     99%    1.02s
  1304 requests in 1.00s, 0.93MB read
Requests/sec:   1303.17
Transfer/sec:      0.93MB
"""

AB = """Complete requests:      95
Failed requests:        2
   (Connect: 0, Receive: 0, Length: 2, Exceptions: 0)
Requests per second:    1150.76 [#/sec] (mean)
Percentage of the requests served within a certain time (ms)
  50%      2
  99%     12
 100%     12 (longest request)
"""


def iperf(sent: int, received: int) -> str:
    sums = {
        "sum_sent": {"bytes": sent, "bits_per_second": 9e9},
        "sum_received": {"bytes": received, "bits_per_second": 8.5e9},
    }
    return json.dumps({"end": sums})


def test_wrk_in_microseconds() -> None:
    assert read_wrk(WRK) == {
        "rps": 1303.17,
        "requests": 1304,
        "max": 10190,
        "p50": 880,
        "p90": 4840,
        "p99": 1_020_000,
        "bad": 0,
    }


def test_wrk_counts_every_kind_of_wrong_answer() -> None:
    text = WRK + "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n"
    assert read_wrk(text)["bad"] == 54321


@pytest.mark.parametrize("text", ["", "unable to connect to 10.90.0.2:8080 Connection refused", WRK.replace("99%", "")])
def test_wrk_without_result(text: str) -> None:
    with pytest.raises(OutputError, match="wrk printed no"):
        read_wrk(text)


def test_ab_counts_what_never_came_back() -> None:
    assert read_ab(AB, 100) == {"cps": 1150.76, "requests": 95, "bad": 7, "p50_ms": 2, "p99_ms": 12}
    assert read_ab(AB + "Non-2xx responses:      30\n", 100)["bad"] == 37


def test_ab_that_gave_up() -> None:
    with pytest.raises(OutputError, match="timeout specified has expired"):
        read_ab("apr_pollset_poll: The timeout specified has expired (70007)\nTotal of 99 requests completed\n", 100)


def test_iperf_goes_by_what_arrived() -> None:
    assert read_iperf(iperf(1000, 1000)) == {"gbps": 8.5, "bytes": 1000, "bad": 0}


@pytest.mark.parametrize(
    ("sent", "received", "bad"),
    [
        (IN_FLIGHT + 5, 5, 0),  # may all have been under way
        (IN_FLIGHT + 6, 5, IN_FLIGHT + 1),
        (1000, 1001, 1),  # nobody sent that byte
    ],
)
def test_iperf_bytes_that_do_not_add_up(sent: int, received: int, bad: int) -> None:
    assert read_iperf(iperf(sent, received))["bad"] == bad


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iperf3: error", "no JSON"),
        ('{"error": "the server is busy running a test. try again later"}', "busy"),
        ('{"start": {}}', "no result"),
    ],
)
def test_iperf_without_result(text: str, says: str) -> None:
    with pytest.raises(OutputError, match=says):
        read_iperf(text)


def test_numbers() -> None:
    assert read_numbers('{"p50": 3, "bad": 0}') == {"p50": 3.0, "bad": 0.0}


@pytest.mark.parametrize("text", ["", "Traceback", "[1]", '{"p50": "fast"}', '{"p50": null}'])
def test_no_numbers(text: str) -> None:
    with pytest.raises(OutputError):
        read_numbers(text)
