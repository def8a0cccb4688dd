"""The watcher's mind: when, who and how. It knows no kernel, clock or descriptor, so that the simulator drives it, too.

=============  ==================================================================================================
``watcher``    *when*: looks at each scope in time, goes up the ladder of its rules, has victims taken
``candidates`` *who*: census, ranking and looks at the leaders, kept ready before they are needed
``hunter``     *how*: one victim from the choice to memory that came back (``hunt``: its states, a table)
``scouts``     the looks ahead of need, each with its pidfd
``team``       this and the reaper as one thing to drive: for the loop, the tests and the simulator alike
=============  ==================================================================================================
"""
