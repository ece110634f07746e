from django.urls import path
from pictures import views

urlpatterns = [
    path("pictures", views.add),
    path("pictures/<str:picture_id>", views.show, name="picture"),
]
