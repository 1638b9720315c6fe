/* SPDX-License-Identifier: Apache-2.0 */
/* kvxfer._ready: one question, asked at every step of an engine. Not part of the cffi module
 * because cffi gives up the GIL in every call, and a thread that wants it back may wait for 5 ms.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/epoll.h>

static PyObject *ready(PyObject *module, PyObject *fd_object)
{
	struct epoll_event event;
	long fd = PyLong_AsLong(fd_object);

	(void)module;
	if (fd == -1 && PyErr_Occurred() != NULL)
		return NULL;
	return PyBool_FromLong(epoll_wait((int)fd, &event, 1, 0) != 0);
}

static PyMethodDef methods[] = {
    {"ready", ready, METH_O,
     "Whether there is something to read from an epoll fd; True when it cannot be asked."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "kvxfer._ready",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__ready(void)
{
	return PyModule_Create(&definition);
}
