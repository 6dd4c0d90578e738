import time, os
from peasy_jobs.peasy_jobs import peasy
@peasy.job("flaky", retries=2, backoff=[0.1])
def flaky(path):
    with open(path,"a") as f: f.write("x")
    if os.path.getsize(path) < 3: raise ValueError("not yet")
    return "ok"
@peasy.job("always fails", retries=1, backoff=[0.1])
def fails(): raise ValueError("never")
@peasy.job("other", retries=5, retry_on=KeyError)
def other(): raise ValueError("x")
@peasy.job("snooze")
def snooze(path):
    with open(path,"a") as f: f.write("x")
    if os.path.getsize(path) < 4: raise peasy.Retry(after=0.05)
@peasy.job("fail")
def fail(): raise peasy.Fail("why")
@peasy.job("cancel")
def cancel(): raise peasy.Cancel
@peasy.job("slow", timeout=0.5)
def slow(): time.sleep(30)
@peasy.job("stubborn", timeout=0.5, retries=1, backoff=[0.1])
def stubborn():
    end=time.time()+30
    while time.time()<end:
        try: time.sleep(1)
        except BaseException: pass
@peasy.job("long")
def long(job_pk):
    for i in peasy.track(job_pk, range(600), "going"): time.sleep(0.05)
