/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue.pml - kicks and interrupts of a split virtqueue (native/vring.c; VIRTIO 1.2, sections
 * 2.7.7 and 2.7.10), with EVENT_IDX or with the flags. Property: no invalid end state: a device that
 * sleeps while chains wait for it, or a driver that waits for an interrupt that never comes.
 *
 * The driver is a stock one and does what the specification says, with its fences. All other
 * accesses are relaxed, as in doorbell.pml; the elements of the queue are not modelled.
 */
#define WORDS 4
#define HISTORY 16
#include "weak.pml"

#define DRIVER 0
#define DEVICE 1
#define AVAIL 0      /* the driver's: avail index */
#define USED_EVENT 1 /* used_event, or NO_INTERRUPT */
#define USED 2       /* the device's: used index */
#define AVAIL_EVENT 3 /* avail_event, or NO_NOTIFY */

#define CHAINS 3
#define SIZE 1 /* the driver waits for each to come back: it sleeps as often as it can */

bit kick, call;

/* Section 2.7.10.1, without wrapping around: did the index pass the event? */
#define PASSED(event, new, old) ((event) >= (old) && (event) < (new))

proctype driver()
{
    byte i, j, v, next, done;

#if EVENT_IDX
#else
    store(DRIVER, USED_EVENT, 1, false); /* no interrupts but while it waits */
#endif
    do
    :: done == CHAINS -> break
    :: done < CHAINS && next < CHAINS && next - done < SIZE ->
        next++;
        store(DRIVER, AVAIL, next, false);
        full_fence(DRIVER);
        load(DRIVER, AVAIL_EVENT, false, v);
#if EVENT_IDX
        if
        :: PASSED(v, next, next - 1) -> kick = 1
        :: else
        fi
#else
        if
        :: !v -> kick = 1
        :: else
        fi
#endif
    :: next - done == SIZE || (next == CHAINS && done < next) ->
        load(DRIVER, USED, false, v);
        if
        :: v != done -> done = v
        :: else ->
#if EVENT_IDX
            store(DRIVER, USED_EVENT, done, false);
#else
            store(DRIVER, USED_EVENT, 0, false);
#endif
            full_fence(DRIVER);
            load(DRIVER, USED, false, v);
            if
            :: v == done -> d_step { call; call = 0 }
            :: else
            fi;
#if EVENT_IDX
#else
            store(DRIVER, USED_EVENT, 1, false)
#endif
        fi
    od
}

proctype device()
{
    byte i, j, v, seen, used, signalled;
    bool valid;

    do
    :: used == CHAINS -> break
    :: else ->
        load(DEVICE, AVAIL, false, seen);
        if
        :: seen != used ->
            /* mint_vring_publish() */
            used = seen;
            store(DEVICE, USED, used, false);
            if
            :: MUTANT(1)
            :: else -> full_fence(DEVICE)
            fi;
            load(DEVICE, USED_EVENT, false, v);
#if EVENT_IDX
            if
            :: !valid || PASSED(v, used, signalled) -> call = 1
            :: else
            fi;
            signalled = used;
            valid = true
#else
            if
            :: !v -> call = 1
            :: else
            fi
#endif
        :: else ->
            /* arm(), pending(), sleep, disarm() */
#if EVENT_IDX
            store(DEVICE, AVAIL_EVENT, seen, false);
#else
            if
            :: OWN(DEVICE, AVAIL_EVENT) -> store(DEVICE, AVAIL_EVENT, 0, false)
            :: else
            fi;
#endif
            if
            :: MUTANT(2)
            :: else -> full_fence(DEVICE)
            fi;
            if
            :: MUTANT(3)
            :: else -> load(DEVICE, AVAIL, false, seen)
            fi;
            if
            :: seen == used -> d_step { kick; kick = 0 }
            :: else
            fi;
#if EVENT_IDX
#else
            store(DEVICE, AVAIL_EVENT, 1, false)
#endif
        fi
    od
}

init
{
    atomic {
        READ_MUTANT;
        run driver();
        run device()
    }
}
